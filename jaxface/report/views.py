"""Further parts of the report: where features lie, what accuracy costs, and whom the models fail."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from jaxface.data.tasks import MISSING, Task
from jaxface.evaluation import metrics
from jaxface.evaluation.groups import FEWEST, disparities, group_errors
from jaxface.evaluation.predictions import Predictions
from jaxface.plots import COLOURS, FAINT, new_figure, styled
from jaxface.report.embeddings import pca, t_sne
from jaxface.report.markup import Cell, Html, details, grid, join, percent, table, tag
from jaxface.report.sections import Runs, picture
from jaxface.report.thesis import our_values, printed_costs
from jaxface.runs.folder import Run

MOST = 800
"""Records whose features are shown."""


def features(runs: Runs) -> Html:
    """PCA and t-SNE of the encoder's output, before and after training, coloured by each task's labels."""
    parts = []
    for name, run in runs.items():
        clouds = {when: _clouds(predictions) for when, predictions in (("before", run.start), ("after", run.predictions))}
        content = []
        for task in run.tasks:
            shown = {when: cloud for when, found in clouds.items() if (cloud := found.get(task.name) or found.get("")) is not None}
            pictures = [
                picture(scatter(points, labels, task), f"{task.name}, {when}: {kind}", name)
                for when, cloud in shown.items()
                for kind, points, labels in cloud(task)
            ]
            content.append(grid(pictures, "quads"))
        parts.append(details(name, *content, opened=name == list(runs)[-1]) if len(runs) > 1 else join(content))
    text = (
        f"The encoder's features of up to {MOST} test records in two dimensions: by principal components, and by t-SNE of the first 50 of "
        "them. Colours are the labels. Distances between far groups mean nothing in t-SNE."
    )
    return join([tag("p", text), *parts]) if any(parts) else Html()


class Cloud:
    """Features of some records and their two projections, computed once for all tasks that share them."""

    def __init__(self, values: np.ndarray, predictions: Predictions) -> None:
        self.rows = np.sort(np.random.default_rng(0).permutation(len(values))[:MOST])
        self.labels = {task.name: predictions.labels[task.name][self.rows] for task in predictions.tasks}
        self.points = {"PCA": pca(values[self.rows], 2), "t-SNE": t_sne(values[self.rows])}

    def __call__(self, task: Task) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        yield from ((kind, points, self.labels[task.name]) for kind, points in self.points.items())


def _clouds(predictions: Predictions | None) -> dict[str, Cloud]:
    """By task, or under '' for features that all tasks share; empty where none were kept."""
    if predictions is None or len(predictions) < 10:
        return {}
    shared = {} if predictions.features is None else {"": predictions.features}
    return {task: Cloud(values, predictions) for task, values in {**shared, **predictions.task_features}.items()}


@styled
def scatter(points: np.ndarray, labels: np.ndarray, task: Task) -> Figure:
    """Points `[N, 2]`, coloured by class: a run of shades for classes with an order."""
    import matplotlib as mpl

    figure, axes = new_figure(3.9, 3.2)
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.95, task.num_classes))
    colours = shades if task.ordinal else [COLOURS[i % len(COLOURS)] for i in range(task.num_classes)]
    known = labels != MISSING
    axes.scatter(*points[~known].T, s=5, color=FAINT, alpha=0.3, linewidths=0, rasterized=True)
    for index, name in enumerate(task.classes):
        axes.scatter(*points[labels == index].T, s=9, color=colours[index], alpha=0.75, linewidths=0, label=name, rasterized=True)
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    figure.legend(loc="outside right center", fontsize=7, markerscale=1.6, handletextpad=0.2)
    return figure


def cost(runs: Runs) -> Html:
    """Parameters and GFLOPs against accuracy, the thesis's models beside ours where both were tested on the same sets."""
    ours, comparable = [], False
    for name, run in runs.items():
        accuracy = our_values(run).get("overall")
        comparable |= accuracy is not None
        accuracy = accuracy or 100 * _mean_accuracy(run)
        parameters, gflops = (run.summary.get(key) or {} for key in ("parameters", "gflops"))
        if accuracy == accuracy and "inference" in parameters and "all products" in gflops:
            ours.append((name, parameters["inference"] / 1e6, gflops.get("linear") or gflops["all products"], accuracy))
    if not ours:
        return Html()
    printed = printed_costs() if comparable else ()
    pictures = [
        picture(cost_figure(ours, printed, column, unit), heading, "cost and accuracy")
        for column, unit, heading in (
            (1, "million parameters at inference", "Size and accuracy"),
            (2, "GFLOPs of an image", "Computation and accuracy"),
        )
    ]
    rows = [[name, f"{size:.2f}", f"{gflops:.3f}", f"{accuracy:.2f}"] for name, size, gflops, accuracy in ours]
    text = (
        "Accuracy is the mean over the tasks (as the thesis averages, where the run was tested on its sets). GFLOPs count two for each "
        "multiply-add of one image's matrix products, without attention's scores and values where the model has no parts per task."
    )
    header = ["run", "million parameters", "GFLOPs", "mean accuracy, %"]
    return join([tag("p", text), grid(pictures), table(header, rows)])


def _mean_accuracy(run: Run) -> float:
    """Mean over the tasks; NaN without answers."""
    if run.predictions is None:
        return float("nan")
    found = [metrics.evaluate_task(run.predictions, task).get("accuracy") for task in run.tasks]
    return float(np.mean([value for value in found if value is not None] or [np.nan]))


@styled
def cost_figure(ours: list, printed: list, column: int, unit: str) -> Figure:
    """Accuracy over one kind of cost: rows of (name, million parameters, GFLOPs, accuracy in percent)."""
    figure, axes = new_figure(3.9, 2.7)
    for rows, marker, colour, label in ((printed, "o", FAINT, "thesis"), (ours, "D", COLOURS[0], "this page")):
        if rows:
            axes.plot([row[column] for row in rows], [row[3] for row in rows], marker, color=colour, label=label, linestyle="none")
        for row in rows:
            axes.annotate(row[0], (row[column], row[3]), xytext=(5, 3), textcoords="offset points", fontsize=7, color=colour)
    axes.margins(0.25)
    axes.set(xlabel=unit, ylabel="accuracy, %")
    if printed:
        axes.legend()
    return figure


def groups(runs: Runs) -> Html:
    """Error rates by group and the largest disparities, in words."""
    parts = []
    for name, run in runs.items():
        errors = group_errors(run.predictions) if run.predictions is not None else []
        if not errors:
            continue
        found = disparities(errors)
        certain = [tag("li", str(d)) for d in found if d.certain]
        words = tag("ul", *certain[:8]) if certain else tag("p", f"No two groups of {FEWEST} or more differ by more than chance explains.")
        rows = [
            [
                Cell(e.task, class_="left"),
                Cell(e.attribute, class_="left"),
                Cell(e.group, class_="left"),
                f"{e.count:,}",
                Cell(percent(e.rate), bar=e.rate),
                Cell(f"{100 * e.low:.1f} to {100 * e.high:.1f}", class_="quiet", sort=e.low),
            ]
            for e in sorted(errors, key=lambda e: (e.task, e.attribute, -e.rate))
            if e.count >= FEWEST
        ]
        left = [Cell(word, class_="left") for word in ("task", "attribute", "group")]
        folded = details("Error rate of every group", table([*left, "records", "error rate", "95 % interval"], rows)) if rows else ""
        parts.append(join([tag("h3", name), words, folded]))
    text = (
        f"Wrong answers by labelled gender and age, and by other groups where the records name them; groups of {FEWEST} records or more. "
        "Listed are the best and worst group of each task whose 95 % intervals do not overlap."
    )
    return join([tag("p", text), *parts]) if parts else Html()
