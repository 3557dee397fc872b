"""A folder for answers of any model, which `jaxface.report` shows beside runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxface.data.records import joined_tasks
from jaxface.data.task_files import task_to
from jaxface.data.tasks import BUILT_IN
from jaxface.evaluation.groups import read_groups, with_groups
from jaxface.evaluation.predictions import Predictions
from jaxface.evaluation.results import Json
from jaxface.files import write_json
from jaxface.runs.evaluate_run import test_split, write_scores
from jaxface.runs.foreign_answers import Told, read_foreign
from jaxface.runs.predictions_file import write_predictions


def evaluate_foreign(
    path: Path, out: Path, told: Told, sets: Sequence[str] = (), split: str | None = None, groups: Sequence[Path] = ()
) -> tuple[Predictions, Json]:
    """Writes answers and their figures into a folder as an evaluation of a run does. Raises UserError as `read_foreign`."""
    labelled = labels_of(sets, split or test_split(sets)) if sets else None
    predictions = read_foreign(path, told, labelled)
    for name, column in map(read_groups, groups):
        predictions = with_groups(predictions, name, column)
    own = {task.name: task_to(task) for task in predictions.tasks if task != BUILT_IN.get(task.name)}
    config = {
        "name": out.name,
        "tasks": [task.name for task in predictions.tasks],
        "definitions": own or None,
        "method": {"name": path.name},
    }
    out.mkdir(parents=True, exist_ok=True)
    write_predictions(out / "predictions.parquet", predictions)
    write_json(out / "config.json", config)
    return predictions, write_scores(out, predictions, {})


def labels_of(sets: Sequence[str], split: str) -> Predictions:
    """The labels of a split of prepared sets, with answers that say nothing."""
    from jaxface.data.pipeline import Joined

    tasks = tuple(joined_tasks(sets).values())
    records = Joined(sets, split, [task.name for task in tasks])
    rows = [records.about(index) for index in range(len(records))]
    columns = {key: np.array([row[key] for row in rows], object) for key in ("id", "source", "person")}
    blank = {task.name: np.zeros((len(records), task.width), np.float32) for task in tasks}
    return Predictions(tasks, columns["id"], records.labels, blank, source=columns["source"], person=columns["person"])
