"""Predictions as tables on the terminal and as files that people read."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from jaxface.data.tasks import MISSING, Task
from jaxface.evaluation.metrics import probabilities, summarize, task_matrix
from jaxface.evaluation.predictions import Predictions
from jaxface.files import aside, check_output
from jaxface.runs.predictions import write_predictions

FIGURES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "off_by_one": "within one class",
    "majority": "majority class",
}
"""Figures of `jaxface.evaluation.metrics.summarize` that the table shows, in percent."""


def metrics_table(predictions: Predictions, title: str) -> Table:
    """One row a task that has labels."""
    summary = summarize(predictions)
    table = Table("task", "records", *(f"{name}, %" for name in FIGURES.values()), title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for task in predictions.tasks:
        if f"count/{task.name}" in summary:
            values = [summary.get(f"{figure}/{task.name}") for figure in FIGURES]
            count = f"{summary[f'count/{task.name}']:,.0f}"
            table.add_row(task.name, count, *("" if value is None else f"{100 * value:.2f}" for value in values))
    return table


def confusion_table(predictions: Predictions, task: Task) -> Table:
    """Counts, rows the labels, columns the predictions."""
    table = Table("label \\ predicted", *task.classes, title=f"{task.name}: confusion matrix")
    for name, row in zip(task.classes, task_matrix(predictions, task), strict=True):
        table.add_row(name, *map(str, row))
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def predictions_table(predictions: Predictions, title: str, most: int = 20) -> Table:
    """The predicted class of every task and its probability, for the first records."""
    table = Table("image", *(task.name for task in predictions.tasks), title=title)
    for row, _ in zip(rows_of(predictions), range(most), strict=False):
        table.add_row(
            Path(row["id"]).name, *(f"{row[task.name]} ({100 * row[f'{task.name}_probability']:.0f} %)" for task in predictions.tasks)
        )
    return table


def rows_of(predictions: Predictions) -> Iterator[dict[str, Any]]:
    """Per record its id and, per task, the predicted class, its probability and, where there is one, the label."""
    chances = {task.name: probabilities(predictions.logits[task.name]) for task in predictions.tasks}
    for index, name in enumerate(predictions.id):
        row: dict[str, Any] = {"id": str(name)}
        for task in predictions.tasks:
            best = int(np.argmax(chances[task.name][index]))
            label = int(predictions.labels[task.name][index])
            row[task.name] = task.classes[best]
            row[f"{task.name}_probability"] = round(float(chances[task.name][index, best]), 6)
            row[f"{task.name}_label"] = None if label == MISSING else task.classes[label]
        yield row


def write_rows(path: Path, predictions: Predictions) -> None:
    """Writes predictions as CSV, JSON lines, or Parquet with all logits, by the suffix; aside, then renamed."""
    check_output(path)
    if path.suffix == ".parquet":
        write_predictions(path, predictions)
        return
    with aside(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            names = [
                "id",
                *(name + end for name in (task.name for task in predictions.tasks) for end in ("", "_probability", "_label")),
            ]
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows_of(predictions))
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows_of(predictions))
