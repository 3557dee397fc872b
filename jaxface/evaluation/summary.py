"""Every figure of a model's answers under flat names."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jaxface.data.tasks import Task, known
from jaxface.evaluation import metrics
from jaxface.evaluation.measures import Figures, measure_of
from jaxface.evaluation.predictions import Predictions


def evaluate_task(predictions: Predictions, task: Task) -> Figures:
    """The figures of one task by name; empty if no record has a label of it. Raises UserError for logits that are not finite."""
    metrics.require_finite(predictions, task)
    if not known(predictions.labels[task.name]).any():
        return {}
    averaged = metrics.average_over_sources(task.name, source_accuracies(predictions, task))
    found = measure_of(task).figures(predictions, task) | {"average_accuracy": averaged}
    return {name: float(value) for name, value in found.items() if not np.isnan(value)}


def source_accuracies(predictions: Predictions, task: Task) -> dict[str, float]:
    """Share of right answers to a task on each source that has labels of it."""
    there, right = known(predictions.labels[task.name]), predictions.right(task)
    sources = np.unique(predictions.source[there])
    return {str(source): float(right[there & (predictions.source == source)].mean()) for source in sources}


def summarize(predictions: Predictions, tasks: Sequence[Task] | None = None) -> Figures:
    """Every figure under a flat key, `FIGURE/TASK` (`accuracy/age`, `macro_f1/emotion`, ...), and `overall_accuracy`.

    Shares are between 0 and 1. A task that no record has a label of has no keys; `average_accuracy/TASK` is the mean over the
    sources (see `averaged_sources`), and `overall_accuracy` the mean of those over the tasks.

    Args:
      predictions: a model's answers.
      tasks: the tasks to look at; all that the predictions hold if None.

    Raises:
      UserError: for logits that are not finite.
    """
    found = {task.name: evaluate_task(predictions, task) for task in (predictions.tasks if tasks is None else tasks)}
    summary = {f"{figure}/{task}": value for task, values in found.items() for figure, value in values.items()}
    averages = {task: values["average_accuracy"] for task, values in found.items() if "average_accuracy" in values}
    return summary | ({"overall_accuracy": metrics.overall(averages)} if averages else {})


def mean_losses(predictions: Predictions) -> Figures:
    """Mean loss of each task over its labelled records, as its kind has it; NaN where there is none."""
    there = {task.name: known(predictions.labels[task.name]).any() for task in predictions.tasks}
    return {task.name: measure_of(task).loss(predictions, task) if there[task.name] else float("nan") for task in predictions.tasks}


def figures(predictions: Predictions) -> Figures:
    """Every figure of `summarize`, and the losses, without those that JSON does not know (a task without labels)."""
    losses = mean_losses(predictions)
    values = {"loss": float(np.nansum(list(losses.values()))), **{f"loss/{task}": value for task, value in losses.items()}}
    return {name: float(value) for name, value in (values | summarize(predictions)).items() if math.isfinite(value)}
