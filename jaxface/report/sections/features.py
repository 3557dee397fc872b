"""Where the encoder's features lie: their principal components, and t-SNE, coloured by each task's labels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from jaxface.data.tasks import Task, known
from jaxface.evaluation.predictions import Predictions
from jaxface.plots import COLOURS, FAINT, new_figure, styled
from jaxface.report.embeddings import pca, t_sne
from jaxface.report.markup import picture, render
from jaxface.report.sections.base import Runs, figure_note
from jaxface.runs.folder import Run

FEWEST, MOST = 10, 800
"""Records of a data set whose features are shown."""


def features(runs: Runs) -> Markup:
    """PCA and t-SNE of the encoder's output on each data set, before and after training, coloured by each task's labels."""
    shown = {}
    for name, run in runs.items():
        clouds = {when: _clouds(predictions) for when, predictions in (("before", run.start), ("after", run.predictions))}
        sources = dict.fromkeys(source for found in clouds.values() for _, source in found)
        rows = [
            [
                picture(scatter(points, labels, task), _heading(task, source, when, kind, run, alone=len(sources) == 1), name)
                for when, found in clouds.items()
                if (cloud := found.get((task.name, source)) or found.get(("", source))) is not None
                for kind, points, labels in cloud(task)
                if labels.ndim == 1 and known(labels).any()
            ]
            for task in run.tasks
            for source in sources
        ]
        if any(rows):
            shown[name] = rows
    return render("features.html", runs=shown, most=MOST) if shown else Markup()


def _heading(task: Task, source: str, when: str, kind: str, run: Run, *, alone: bool) -> str:
    return f"{task.name}{'' if alone else f' on {source}'}, {when}{figure_note('features', task.name, source, run)}: {kind}"


class Cloud:
    """Features of some records and their two projections, computed once for all tasks that share them."""

    def __init__(self, values: np.ndarray, predictions: Predictions, rows: np.ndarray) -> None:
        rows = np.sort(np.random.default_rng(0).permutation(rows)[:MOST])
        self.labels = {task.name: predictions.labels[task.name][rows] for task in predictions.tasks}
        self.points = {"PCA": pca(values[rows], 2), "t-SNE": t_sne(values[rows])}

    def __call__(self, task: Task) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        yield from ((kind, points, self.labels[task.name]) for kind, points in self.points.items())


def _clouds(predictions: Predictions | None) -> dict[tuple[str, str], Cloud]:
    """By data set and task, or '' for features that all tasks share; empty where none were kept."""
    if predictions is None:
        return {}
    shared = {} if predictions.features is None else {"": predictions.features}
    found = {}
    for source in sorted(set(predictions.source)):
        rows = np.flatnonzero(predictions.source == source)
        if len(rows) >= FEWEST:
            found |= {(task, source): Cloud(values, predictions, rows) for task, values in {**shared, **predictions.task_features}.items()}
    return found


@styled
def scatter(points: np.ndarray, labels: np.ndarray, task: Task) -> Figure:
    """Points `[N, 2]`, coloured by class: a run of shades for classes with an order."""
    import matplotlib as mpl

    figure, axes = new_figure(3.9, 3.2)
    if labels.dtype.kind == "f":  # a number: shades over its range
        axes.scatter(*points.T, s=9, c=labels, cmap="viridis", alpha=0.75, linewidths=0, rasterized=True)
        axes.set(xticks=[], yticks=[])
        return figure
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.95, task.num_classes))
    colours = shades if task.ordinal else [COLOURS[i % len(COLOURS)] for i in range(task.num_classes)]
    axes.scatter(*points[~known(labels)].T, s=5, color=FAINT, alpha=0.3, linewidths=0, rasterized=True)
    for index, name in enumerate(task.classes):
        axes.scatter(*points[labels == index].T, s=9, color=colours[index], alpha=0.75, linewidths=0, label=name, rasterized=True)
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    figure.legend(loc="outside right center", fontsize=7, markerscale=1.6, handletextpad=0.2)
    return figure
