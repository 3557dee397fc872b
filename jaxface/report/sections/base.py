"""What several parts of the report ask of the runs."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from jaxface.data.tasks import Task
from jaxface.evaluation import metrics
from jaxface.evaluation.measures import measure_of
from jaxface.evaluation.predictions import Predictions
from jaxface.runs.folder import Run

Runs = Mapping[str, Run]
"""Runs by the name that the page gives them."""

IGNORED = ("name", "out", "seed", "seeds", "grid", "cluster", "report", "log_every", "checkpoint_minutes", "after")
"""Options that do not tell two experiments apart."""


FIGURES: Mapping[tuple[str, str, str], str] = {
    ("matrix", "emotion", "rafdb"): "4.2",
    ("matrix", "age", "fairface"): "4.3",
    ("matrix", "age", "utkface"): "4.3",
    ("features", "emotion", "rafdb"): "4.4",
    ("features", "age", "utkface"): "4.5",
    ("features", "gender", "utkface"): "4.5",
}
"""Which figure of the thesis shows a task's confusion matrix or features on a data set."""


def figure_note(kind: str, task: str, source: str, run: Run) -> str:
    """Words for a caption where the picture is one of the thesis's figures: of models of several tasks on its data sets."""
    number = FIGURES.get((kind, task, metrics.source_key(source))) if len(run.tasks) > 1 else None
    if kind == "features" and run.predictions is not None and run.predictions.task_features and number:
        number += ", 4.6"
    return f" (Figure {number})" if number else ""


def tasks_of(runs: Runs) -> dict[str, Task]:
    """Every task of any run, by name."""
    return {task.name: task for run in runs.values() for task in run.tasks}


def confusion_of(predictions: Predictions | None, task: Task) -> np.ndarray | None:
    """The confusion matrix `[C, C]`, or None if there are no answers or labels."""
    if predictions is None or task.name not in predictions.labels or len(predictions) == 0 or not measure_of(task).confuses:
        return None
    matrix = metrics.task_matrix(predictions, task)
    return matrix if matrix.sum() else None


def options_of(run: Run) -> dict[str, Any]:
    """The options that tell experiments apart, by their dotted names."""
    return dict(_flat({key: value for key, value in run.config.items() if key not in IGNORED}))


def settings(run: Run, besides: Collection[str] = ()) -> str:
    """`options_of` as one text, the same for runs that differ in nothing else than the options named."""
    return json.dumps({key: value for key, value in options_of(run).items() if key.partition(".")[0] not in besides}, sort_keys=True)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
