"""All that `jaxface.evaluate` says of a model, from its stored answers alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxface.data.tasks import Task, known
from jaxface.evaluation import metrics
from jaxface.evaluation.groups import disparities, group_errors, to_rows
from jaxface.evaluation.measures import measure_of
from jaxface.evaluation.predictions import Predictions
from jaxface.evaluation.summary import evaluate_task, summarize
from jaxface.files import finite

Json = dict[str, Any]


def score(predictions: Predictions, temperatures: Mapping[str, float] | None = None) -> Json:
    """Every figure as JSON values: `summary` (flat), and per task its sources, classes, confusion matrix, intervals and calibration.

    Args:
      predictions: the answers.
      temperatures: per task, fitted on other records; a task without one is shown as it is.

    Raises UserError for logits that are not finite.
    """
    temperatures = temperatures or {}
    tasks = [task for task in predictions.tasks if known(predictions.labels[task.name]).any()]
    groups = group_errors(predictions)
    result = {
        "records": len(predictions),
        "about": dict(predictions.about),
        "summary": summarize(predictions),
        "tasks": {task.name: _task(predictions, task, temperatures.get(task.name)) for task in tasks},
        "groups": to_rows(groups),
        "disparities": [{"gap": d.gap, "certain": d.certain, "says": str(d)} for d in disparities(groups)],
    }
    return finite(result)


def _task(predictions: Predictions, task: Task, temperature: float | None) -> Json:
    labelled, measure = known(predictions.labels[task.name]), measure_of(task)
    sources = sorted(set(predictions.source[labelled]))
    return {
        "kind": task.kind,
        **evaluate_task(predictions, task),
        "interval": measure.intervals(predictions, task),
        "sources": {source: evaluate_task(predictions.rows(predictions.source == source, [task]), task) for source in sources},
        "averaged_over": metrics.averaged_sources(task.name, sources),
        **measure.details(predictions, task),
        "calibration": measure.calibration(predictions, task, temperature),
    }


def hardest_of(predictions: Predictions | None, task: Task, most: int = 5) -> list[tuple[float, str, str, str, str]]:
    """The wrong answers that give the label least: what they give it, record, task, label, answer."""
    if predictions is None:
        return []
    labels = predictions.labels[task.name]
    given, words = measure_of(task).doubt(predictions, task)
    wrong = np.flatnonzero(known(labels) & ~predictions.right(task))
    rows = wrong[np.argsort(given[wrong], kind="stable")][:most]
    return [(float(given[row]), str(predictions.id[row]), task.name, task.of.label_words(task, labels[row]), words[row]) for row in rows]
