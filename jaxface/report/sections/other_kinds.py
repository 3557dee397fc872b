"""What the page shows of tasks that are no single class: several labels at once, and numbers."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from jaxface.data.tasks import Task, known
from jaxface.evaluation.measures import RegressionMeasure, measure_of
from jaxface.evaluation.predictions import Predictions
from jaxface.evaluation.summary import evaluate_task
from jaxface.plots import COLOURS, FAINT, INK, new_figure, styled
from jaxface.report.markup import Cell, percent, picture, table
from jaxface.report.sections.base import Runs

Parts = dict[str, object]
MOST_POINTS = 3000
"""Records that a cloud shows."""


def answered(runs: Runs, task: Task) -> dict[str, Predictions]:
    """The answers of those runs that have some of the task on labelled records."""
    found = {name: run.predictions for name, run in runs.items() if run.predictions is not None and task in run.predictions.tasks}
    return {name: own for name, own in found.items() if known(own.labels[task.name]).any()}


def figures_table(found: dict[str, Predictions], task: Task) -> Markup:
    """A run's figures of a task in a row, with their intervals."""
    measure = measure_of(task)
    figures = {name: evaluate_task(predictions, task) for name, predictions in found.items()}
    one_source = all(len(set(predictions.source)) == 1 for predictions in found.values())
    keys = [key for key in measure.titles if any(key in values for values in figures.values())]
    keys = [key for key in keys if key != "average_accuracy" or not one_source]
    rows = [[name, *(_form(measure.shares, key, values.get(key)) for key in keys)] for name, values in figures.items()]
    return table(["run", *(measure.titles[key] for key in keys)], rows) if rows and keys else Markup()


def _form(shares: tuple[str, ...], key: str, value: float | None) -> str:
    return "—" if value is None else percent(value) if key in shares else f"{value:.3g}"


def labels_of(runs: Runs, task: Task) -> Parts:
    """Several labels at once: average precision of each, recall and precision."""
    found = answered(runs, task)
    if not found:
        return {}
    details = {name: measure_of(task).details(predictions, task)["classes"] for name, predictions in found.items()}
    rows = []
    for label in task.classes:
        for name, own in details.items():
            values = own[label]
            shares = [percent(values[key]) for key in ("f1", "recall", "precision")]
            average = Cell(percent(values["average_precision"]), class_="strong", bar=np.nan_to_num(values["average_precision"]))
            rows.append([label, *([name] if len(details) > 1 else []), f"{values['records']:,}", average, *shares])
    header = ["label", *(["run"] if len(details) > 1 else []), "records", "average precision", "F1", "recall", "precision"]
    pictures = [
        picture(label_bars(own, task), f"{name}: {percent(evaluate_task(found[name], task).get('mean_average_precision'))} mAP", task.name)
        for name, own in details.items()
    ]
    caption = "Average precision of each label; several may hold of one picture."
    return {
        "pictures": pictures,
        "sources": [],
        "tables": [table(header, rows), figures_table(found, task)],
        "calibration": [],
        "caption": caption,
    }


def numbers_of(runs: Runs, task: Task) -> Parts:
    """A number: predicted against labelled, and how large the errors are."""
    found, measure = answered(runs, task), measure_of(task)
    if not found or not isinstance(measure, RegressionMeasure):
        return {}
    pictures = []
    for name, predictions in found.items():
        numbers, labels = measure.numbers(predictions, task)
        values = evaluate_task(predictions, task)
        heading = f"{name}: off by {values['mean_absolute_error']:.3g} {task.unit} on average"
        pictures += [picture(cloud(labels, numbers, task), heading, f"{task.name}, predicted against labelled")]
        pictures += [picture(error_bars(labels, numbers, task), f"{name}: errors by the label", f"errors of {task.name}")]
    within = f"Right is what is within {task.within:g} {task.unit} of the label."
    return {"pictures": pictures, "sources": [], "tables": [figures_table(found, task)], "calibration": [], "caption": within}


@styled
def label_bars(values: dict[str, dict[str, float]], task: Task) -> Figure:
    """A bar for each label's average precision, with the share of records that have it as a tick: what guessing reaches."""
    names = list(task.classes)[:40]
    figure, axes = new_figure(3.9, max(1.6, 0.22 * len(names) + 0.8))
    axes.barh(names[::-1], [100 * np.nan_to_num(values[name]["average_precision"]) for name in names[::-1]], color=COLOURS[0])
    axes.set(xlabel="average precision, %", xlim=(0, 100))
    axes.grid(visible=False, axis="y")
    return figure


@styled
def cloud(labels: np.ndarray, numbers: np.ndarray, task: Task) -> Figure:
    """Predicted over labelled numbers, a point each, and where they would be equal."""
    rows = np.random.default_rng(0).permutation(len(labels))[:MOST_POINTS]
    figure, axes = new_figure(3.3, 3.1)
    low, high = min(labels.min(), numbers.min()), max(labels.max(), numbers.max())
    axes.plot([low, high], [low, high], color=FAINT, linewidth=1)
    axes.scatter(labels[rows], numbers[rows], s=7, color=COLOURS[0], alpha=0.5, linewidths=0, rasterized=True)
    unit = f", {task.unit}" if task.unit else ""
    axes.set(xlabel=f"label{unit}", ylabel=f"predicted{unit}")
    return figure


@styled
def error_bars(labels: np.ndarray, numbers: np.ndarray, task: Task) -> Figure:
    """Mean error and mean absolute error in ten ranges of the label."""
    edges = np.linspace(labels.min(), labels.max() + 1e-9, 11)
    place = np.clip(np.digitize(labels, edges) - 1, 0, 9)
    there = [index for index in range(10) if (place == index).any()]
    middle = [(edges[index] + edges[index + 1]) / 2 for index in there]
    error = numbers - labels
    figure, axes = new_figure(3.9, 2.7)
    axes.bar(
        middle, [np.abs(error[place == i]).mean() for i in there], 0.8 * (edges[1] - edges[0]), color=COLOURS[0], label="mean absolute"
    )
    axes.plot(middle, [error[place == i].mean() for i in there], color=INK, marker="o", markersize=3, label="mean, with its sign")
    unit = f", {task.unit}" if task.unit else ""
    axes.set(xlabel=f"label{unit}", ylabel=f"error{unit}")
    axes.legend()
    return figure
