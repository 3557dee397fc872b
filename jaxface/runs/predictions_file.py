"""The file that holds a model's answers: every figure can be computed from it again without the model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxface.data.task_files import task_from, task_to
from jaxface.data.tasks import Task
from jaxface.errors import UserError
from jaxface.evaluation.predictions import Predictions
from jaxface.files import aside

METADATA_KEY = b"jaxface"
"""Key of the schema's metadata: JSON with the tasks, their classes in the order of the logits, and whatever the writer adds."""


def _lists(values: np.ndarray) -> pa.ListArray:
    rows, width = values.shape
    return pa.ListArray.from_arrays(np.arange(0, rows * width + 1, max(width, 1), dtype=np.int32), np.asarray(values, np.float32).ravel())


def write_predictions(path: Path | str, predictions: Predictions) -> None:
    """Writes a Parquet file: `id`, `source`, `person`, per task `TASK` and `TASK_logits`, and what there is of `features`,
    `TASK_features` and `group_NAME`.

    The file is written aside and renamed: whoever reads the path never sees half of it.
    """
    path = Path(path)
    columns: dict[str, Any] = {name: pa.array(getattr(predictions, name), pa.string()) for name in ("id", "source", "person")}
    for task in predictions.tasks:
        labels = predictions.labels[task.name]
        columns[task.name] = pa.array(labels.tolist() if labels.ndim > 1 else labels)
        columns[f"{task.name}_logits"] = _lists(predictions.logits[task.name])
    if predictions.features is not None:
        columns["features"] = _lists(predictions.features)
    columns |= {f"{task}_features": _lists(values) for task, values in predictions.task_features.items()}
    columns |= {f"group_{name}": pa.array(values, pa.string()) for name, values in predictions.groups.items()}
    tasks = [_described(task) for task in predictions.tasks]
    about = {**predictions.about, "tasks": tasks}
    about = json.dumps(about | {"sha256": _digest(pa.table(columns), about)}, ensure_ascii=False)
    with aside(path) as temporary:
        pq.write_table(pa.table(columns).replace_schema_metadata({METADATA_KEY: about.encode()}), temporary, compression="zstd")


def read_predictions(path: Path | str) -> Predictions:
    """Reads what `write_predictions` wrote. Raises UserError that names the file and what is wrong with it."""
    path = Path(path)
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `python -m jaxface.evaluate RUN` writes it") from None
    except (OSError, pa.ArrowException, ValueError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
    about = (table.schema.metadata or {}).get(METADATA_KEY)
    if about is None:
        raise UserError(f"{path}: its metadata name no tasks and classes; it was not written as predictions")
    try:
        about = json.loads(about)
        written = about.pop("sha256", None)
        found = _digest(table, about)
        tasks = tuple(_task(entry) for entry in about.pop("tasks"))
        predictions = Predictions(
            tasks=tasks,
            id=_strings(table, "id"),
            labels={task.name: _labels(table, task) for task in tasks},
            logits={task.name: _matrix(table, f"{task.name}_logits", task.width) for task in tasks},
            source=_strings(table, "source"),
            person=_strings(table, "person"),
            features=_matrix(table, "features") if "features" in table.column_names else None,
            task_features={t.name: _matrix(table, f"{t.name}_features") for t in tasks if f"{t.name}_features" in table.column_names},
            groups={n.removeprefix("group_"): _strings(table, n) for n in table.column_names if n.startswith("group_")},
            about=about,
        )
        if written not in (None, found):  # files of earlier versions say none
            raise ValueError("damaged or changed: its content is not what was written; `python -m jaxface.evaluate RUN` writes it again")
        return predictions
    except KeyError as error:
        raise UserError(f"{path}: no column or entry {error}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from None


def _described(task: Task) -> dict[str, Any]:
    """A task as the file says it; of classes as all versions have said it."""
    own = {} if task.kind in ("classification", "ordinal") else task_to(task)
    return {"name": task.name, "classes": list(task.classes), "ordinal": task.ordinal} | own


def _task(entry: dict[str, Any]) -> Task:
    about = {key: value for key, value in entry.items() if key not in ("name", "ordinal")}
    return task_from(entry["name"], {"kind": "ordinal" if entry["ordinal"] else "classification"} | about)


def _labels(table: pa.Table, task: Task) -> np.ndarray:
    labels = table[task.name]
    return np.array(labels.to_pylist(), np.int8).reshape(len(table), -1) if pa.types.is_list(labels.type) else labels.to_numpy()


def _digest(table: pa.Table, about: Mapping[str, Any]) -> str:
    """SHA-256 over the columns' values and what the metadata say."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(table.column_names):
        column = table[name].combine_chunks()
        parts = [column.is_valid(), column.value_lengths(), column.flatten()] if pa.types.is_list(column.type) else [column]
        digest.update(f"{name} {len(column)}".encode())
        for part in parts:
            values = part.to_numpy(zero_copy_only=False)
            digest.update(json.dumps(values.tolist()).encode() if values.dtype == object else np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _strings(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(table[name].to_pylist(), object)


def _matrix(table: pa.Table, name: str, expected: int | None = None) -> np.ndarray:
    """A column of equally long lists as `[N, width]`."""
    column = table[name].combine_chunks()
    lengths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
    width = expected if expected is not None else int(lengths[0]) if len(lengths) else 0
    if len(lengths) > 1 or (len(lengths) and lengths[0] != width):
        raise ValueError(f"column {name}: lists of {', '.join(str(length) for length in lengths)} values, expected {width} in each row")
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), width)
