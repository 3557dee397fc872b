"""All that `jaxface.evaluate` says of a model, from its stored answers alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxface.data.tasks import MISSING, Task
from jaxface.evaluation import metrics
from jaxface.evaluation.groups import disparities, group_errors, to_rows
from jaxface.evaluation.predictions import Predictions
from jaxface.files import finite

Json = dict[str, Any]

INTERVALS: Mapping[str, metrics.Statistic] = {
    "accuracy": metrics.accuracy,
    "balanced_accuracy": metrics.balanced_accuracy,
    "macro_f1": metrics.macro_f1,
}
ORDINAL_INTERVALS: Mapping[str, metrics.Statistic] = {
    "off_by_one": metrics.off_by_one_accuracy,
    "mean_absolute_error": metrics.mean_absolute_error,
}
"""Figures with a bootstrap interval."""


def score(predictions: Predictions, temperatures: Mapping[str, float] | None = None) -> Json:
    """Every figure as JSON values: `summary` (flat), and per task its sources, classes, confusion matrix, intervals and calibration.

    Args:
      predictions: the answers.
      temperatures: per task, fitted on other records; a task without one is shown as it is.

    Raises UserError for logits that are not finite.
    """
    temperatures = temperatures or {}
    tasks = [task for task in predictions.tasks if (predictions.labels[task.name] != MISSING).any()]
    groups = group_errors(predictions)
    result = {
        "records": len(predictions),
        "about": dict(predictions.about),
        "summary": metrics.summarize(predictions),
        "tasks": {task.name: _task(predictions, task, temperatures.get(task.name)) for task in tasks},
        "groups": to_rows(groups),
        "disparities": [{"gap": d.gap, "certain": d.certain, "says": str(d)} for d in disparities(groups)],
    }
    return finite(result)


def _task(predictions: Predictions, task: Task, temperature: float | None) -> Json:
    matrix = metrics.task_matrix(predictions, task)
    labelled = predictions.labels[task.name] != MISSING
    sources = sorted(set(predictions.source[labelled]))
    columns = {"recall": metrics.recall(matrix), "precision": metrics.precision(matrix), "records": matrix.sum(1)}
    return {
        **metrics.evaluate_task(predictions, task),
        "interval": intervals(predictions, task),
        "sources": {source: metrics.evaluate_task(_rows(predictions, task, predictions.source == source), task) for source in sources},
        "averaged_over": metrics.averaged_sources(task.name, sources),
        "classes": {name: {key: values[i].item() for key, values in columns.items()} for i, name in enumerate(task.classes)},
        "confusion": matrix.tolist(),
        "calibration": calibration(predictions, task, temperature),
    }


def intervals(predictions: Predictions, task: Task) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals, over whole persons where several records are of one."""
    matrices = metrics.person_matrices(predictions, task)
    figures = {**INTERVALS, **(ORDINAL_INTERVALS if task.ordinal else {})}
    return {name: metrics.bootstrap_interval(matrices, statistic) for name, statistic in figures.items()}


def calibration(predictions: Predictions, task: Task, temperature: float | None) -> Json:
    """Expected calibration error and mean negative log-likelihood, as the model is and with its temperature."""
    result: Json = {"temperature": temperature}
    labels = predictions.labels[task.name]
    known = labels != MISSING
    for suffix, divisor in (("", 1.0), *((("_calibrated", temperature),) if temperature else ())):
        shares = metrics.probabilities(predictions.logits[task.name] / divisor)
        result[f"error{suffix}"] = metrics.reliability(shares, labels).calibration_error
        chosen = shares[known, labels[known]]
        result[f"negative_log_likelihood{suffix}"] = float(-np.log(np.maximum(chosen, 1e-30)).mean())
    return result


def _rows(predictions: Predictions, task: Task, rows: np.ndarray) -> Predictions:
    """Some rows, of one task."""
    columns = {name: getattr(predictions, name)[rows] for name in ("id", "source", "person")}
    return Predictions(
        (task,), labels={task.name: predictions.labels[task.name][rows]}, logits={task.name: predictions.logits[task.name][rows]}, **columns
    )


def hardest_of(predictions: Predictions | None, task: Task, most: int = 5) -> list[tuple[float, str, str, str, str]]:
    """The wrong answers that give the label least: probability of the label, record, task, label, predicted class."""
    if predictions is None:
        return []
    labels, predicted = predictions.labels[task.name], predictions.predicted(task.name)
    shares = metrics.probabilities(predictions.logits[task.name])
    wrong = np.flatnonzero((labels != MISSING) & (labels != predicted))
    rows = wrong[np.argsort(shares[wrong, labels[wrong]], kind="stable")][:most]
    return [
        (float(shares[row, labels[row]]), str(predictions.id[row]), task.name, task.classes[labels[row]], task.classes[predicted[row]])
        for row in rows
    ]
