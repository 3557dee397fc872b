"""Class by class: confusion matrices, recall and precision, calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from markupsafe import Markup

from jaxface.data.tasks import Task
from jaxface.evaluation import metrics
from jaxface.registry import Registry
from jaxface.report import figures
from jaxface.report.markup import Cell, percent, picture, render, table
from jaxface.report.sections.base import Runs, confusion_of, figure_note, tasks_of
from jaxface.report.sections.other_kinds import answered, figures_table, labels_of, numbers_of
from jaxface.runs.folder import Run


def classes(runs: Runs) -> Markup:
    """Every task that a run has answers and labels of."""
    found = {task.name: SHOWN.get(task.kind)(runs, task) for task in tasks_of(runs).values()}
    shown = {name: parts for name, parts in found.items() if parts}
    return render("classes.html", tasks=shown) if shown else Markup()


def _classes_of(runs: Runs, task: Task) -> dict[str, object]:
    """What the template shows of a task: its pictures, tables and calibration; empty without answers."""
    matrices = {
        (name, when): matrix
        for name, run in runs.items()
        for when, predictions in (("before", run.before), ("after", run.predictions))
        if (matrix := confusion_of(predictions, task)) is not None
    }
    if not matrices:
        return {}
    pictures = []
    for (name, when), matrix in matrices.items():
        heading = f"{name}{', before' if when == 'before' else ''}: {percent(float(metrics.accuracy(matrix)))}"
        pictures.append(picture(figures.confusion(matrix, task.classes), heading, f"confusion matrix of {task.name}"))
    return {
        "pictures": pictures,
        "sources": [drawn for name, run in runs.items() if (name, "after") in matrices for drawn in _of_sources(name, run, task)],
        "tables": [_class_table(matrices, task), figures_table(answered(runs, task), task)],
        "caption": "Rows are labels, columns predictions, each row in percent with the number of records below.",
        "calibration": [diagram for name, run in runs.items() if (name, "after") in matrices for diagram in _calibration(name, run, task)],
    }


def _of_sources(name: str, run: Run, task: Task) -> list[Markup]:
    """The confusion matrix on each data set, with the figures that the thesis prints below its own."""
    pictures = []
    for source, matrix in metrics.source_matrices(run.predictions, task).items() if run.predictions is not None else ():
        accuracy, balanced = (percent(float(figure(matrix)), 2) for figure in (metrics.accuracy, metrics.balanced_accuracy))
        heading = f"{name} on {source or 'test'}{figure_note('matrix', task.name, source, run)}: {accuracy}, balanced {balanced}"
        pictures.append(picture(figures.confusion(matrix, task.classes), heading, f"confusion matrix of {task.name}"))
    return pictures


def _calibration(name: str, run: Run, task: Task) -> list[Markup]:
    """The reliability diagram, and the one with the temperature that was fitted on validation records."""
    temperature = run.temperatures.get(task.name)
    pictures = []
    if not run.predictions.says_how_sure(task):
        return []
    for divisor, note in ((1.0, ""), *(((temperature, f", temperature {temperature:.2f}"),) if temperature else ())):
        shares = metrics.probabilities(run.predictions.logits[task.name] / divisor)
        bins = metrics.reliability(shares, run.predictions.labels[task.name])
        heading = f"{name}{note}: {percent(bins.calibration_error)} calibration error"
        pictures.append(picture(figures.reliability_diagram(bins), heading, f"calibration of {task.name}"))
    return pictures


def _class_table(matrices: Mapping[tuple[str, str], np.ndarray], task: Task) -> Markup:
    """Records, recall and precision of each class; the records once if all runs were tested on the same number of them."""
    records = {name: matrix.sum(axis=1) for (name, _), matrix in matrices.items()}
    same = len({tuple(counts) for counts in records.values()}) == 1
    columns: list[tuple[str, list[object]]] = [("class", [Cell(name, sort=index) for index, name in enumerate(task.classes)])]
    if same:
        columns.append(("records", [f"{count:,}" for count in next(iter(records.values()))]))
    groups: list[tuple[str | None, int]] = [(None, len(columns))]
    for name, counts in records.items():
        own: list[tuple[str, list[object]]] = [] if same else [("records", [f"{count:,}" for count in counts])]
        if (name, "before") in matrices:
            own.append(("recall before", [percent(value) for value in metrics.recall(matrices[name, "before"])]))
        if (name, "after") in matrices:
            matrix = matrices[name, "after"]
            own.append(("recall", [Cell(percent(value), class_="strong", bar=value) for value in metrics.recall(matrix)]))
            own.append(("precision", [percent(value) for value in metrics.precision(matrix)]))
        columns += own
        groups.append((name, len(own)))
    rows = zip(*(values for _, values in columns), strict=True)
    return table([heading for heading, _ in columns], rows, groups=groups if len(records) > 1 else ())


SHOWN: Registry[Callable[[Runs, Task], dict[str, object]]] = Registry(
    "task's part of the page",
    {"classification": _classes_of, "ordinal": _classes_of, "multi-label": labels_of, "regression": numbers_of},
)
"""What the page shows of a task, by its kind: pictures, tables and a caption for the template; nothing without answers."""
