"""Answers of any model from a table (CSV, Parquet) or JSON lines, as the answers that every figure here is computed from.

A row is a record: its `id` (or path), per task the answer in a column of the task's name (or `TASK_predicted`), and maybe the label as
`TASK_label`, a confidence as `TASK_confidence` (or `_probability`, `_score`), and a probability for each class as `TASK_CLASS`: what
`jaxface.predict` writes is read so. Labels come from prepared sets, too, by the record's id.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxface.data.cells import read_labels
from jaxface.data.discovery import discover
from jaxface.data.tables import SYNONYMS, Table, number_of, plain
from jaxface.data.task_files import read_tasks
from jaxface.data.tasks import AGE, AGE_YEARS, BUILT_IN, TASKS, Task, known
from jaxface.errors import UserError, tell
from jaxface.evaluation.predictions import Predictions

PREDICTED, LABEL = ("", "_predicted", "_prediction", "_pred"), ("_label", "_true", "_truth")
SURE = ("_confidence", "_probability", "_score")
"""What stands behind a task's name in the columns of its answer, its label and its confidence."""
LEAST = 1e-7
"""The least probability whose logarithm is taken."""
Rows = list[dict[str, Any]]


@dataclass
class Told:
    """What a user says of the columns.

    Attributes:
      columns: by the name that is expected here, `age_label`, the one in the file.
      tasks_file: of tasks that are not built in.
      several: whether it is of several files, one of which may have a column by its own name.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    tasks_file: Path | None = None
    several: bool = False


def read_foreign(path: Path, told: Told, labelled: Predictions | None = None) -> Predictions:
    """The answers in a file.

    Args:
      labelled: the labels of prepared records, by their ids; where there are some, rows of others are left out and told.

    Raises UserError that names the file, and what is missing or cannot be read.
    """
    rows = _renamed(list(rows_of(path)), path, told)
    if not rows:
        raise UserError(f"{path}: no row")
    names = list(dict.fromkeys(name for row in rows for name in row))
    ids = _ids(path, rows, names)
    known_tasks = {**dict(TASKS.items()), **(read_tasks(told.tasks_file) if told.tasks_file else {})}
    known_tasks |= {task.name: task for task in labelled.tasks} if labelled is not None else {}
    tasks = _tasks(path, rows, names, known_tasks)
    places = _matched(path, ids, labelled) if labelled is not None else None
    kept = list(range(len(rows))) if places is None else [row for row, place in enumerate(places) if place >= 0]
    labels, logits, unsure = {}, {}, []
    for task in tasks:
        chosen = [rows[row] for row in kept]
        logits[task.name], sure = _logits(path, task, chosen, [ids[row] for row in kept])
        labels[task.name] = _labels(path, task, chosen, [ids[row] for row in kept])
        if labelled is not None and places is not None and task.name in labelled.labels:
            own, theirs = known(labels[task.name]), labelled.labels[task.name][[places[row] for row in kept]]
            labels[task.name] = labels[task.name] if own.any() else theirs
        unsure += [] if sure else [task.name]
    more: dict[str, Any] = {}
    if labelled is not None and places is not None:
        found = [places[row] for row in kept]
        more = {"source": labelled.source[found], "person": labelled.person[found]}
        ids = [str(labelled.id[place]) for place in places]
    about = {"run": path.stem, "model": path.name, "split": "answers", "no_confidence": unsure}
    return Predictions(tuple(tasks), np.array([ids[row] for row in kept], object), labels, logits, about=about, **more)


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table, or of JSON lines with the values of nested objects under `outer_inner`; the first face of an image's."""
    if path.suffix.lower() not in (".jsonl", ".ndjson"):
        table = Table(path, ())
        table.columns, table.unread = {name: place for place, name in enumerate(table.names) if name}, []
        yield from (row for _, row in table.rows())
        return
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise UserError(f"{path}:{number}: expected an object")
                    faces = row.pop("faces", None)
                    yield dict(_flat(row | (faces[0] if faces else {})))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON lines ({str(error).splitlines()[0]})") from None


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested objects; an answer's class, labels or value under the task's own name."""
    for key, value in values.items():
        name = prefix if key in ("class", "labels", "value") and prefix else f"{prefix}_{key}" if prefix else key
        if isinstance(value, Mapping):
            yield from _flat(value, prefix if key == "probabilities" else name)
        elif value is not None and value != "":
            yield name, [str(one) for one in value] if isinstance(value, list) else str(value)


def _renamed(rows: Rows, path: Path, told: Told) -> Rows:
    """The rows by the names that are expected here; a column that the user names stands in the place of one that is called so itself.

    Raises UserError where one of those that the user names is in no row.
    """
    names = {name for row in rows for name in row}
    for name, written in told.columns.items():
        if rows and written not in names and (name not in names or not told.several):
            raise UserError(f"{path}: --columns {name}={written}: no column {written}; found {', '.join(sorted(names))}")
    back = {written: name for name, written in told.columns.items() if written in names}
    return [{back.get(name, name): value for name, value in row.items() if name in back or name not in back.values()} for row in rows]


def _ids(path: Path, rows: Rows, names: Sequence[str]) -> list[str]:
    """What each row is of. Raises UserError where that is not told, or told twice."""
    words = ("id", "record", "path", *SYNONYMS["path"])
    column = next((name for word in words for name in names if plain(name) == word), None)
    if column is None:
        raise UserError(f"{path}: no column id or path; found {', '.join(names)} (--columns id=NAME)")
    ids = [str(row.get(column, "")) for row in rows]
    twice = next((one for one in ids if not one or ids.count(one) > 1), None) if len(set(ids)) < len(ids) or "" in ids else None
    if twice is not None:
        raise UserError(f"{path}: two rows are of {twice}" if twice else f"{path}: a row without {column}")
    return ids


def _column(names: Sequence[str], task: str, ends: Sequence[str]) -> str | None:
    """The column that has a task's name, with one of the endings."""
    return next((name for end in reversed(ends) for name in names if plain(name) == plain(task) + end), None)


def _tasks(path: Path, rows: Rows, names: Sequence[str], known_tasks: Mapping[str, Task]) -> list[Task]:
    """The tasks that the columns answer: known ones, and those that have a label in the file, found by their values."""
    found = [task for task in known_tasks.values() if _column(names, task.name, PREDICTED)]
    for name in names:
        task = next((name.removesuffix(end) for end in LABEL if name.endswith(end)), name)
        if task != name and task not in [one.name for one in found] and (column := _column(names, task, PREDICTED)):
            cells = [row[one] for one in (column, name) for row in rows if one in row]
            made = discover(task, cells)
            if isinstance(made, str):
                raise UserError(f"{path}: column {name}: {made}")
            found.append(made)
    if not found:
        raise UserError(
            f"{path}: no column with an answer: expected one called after a task ({', '.join(list(known_tasks)[:8])}), with its label in "
            f"TASK_label or in --data; found {', '.join(names)} (--columns TASK=NAME)"
        )
    if AGE in found and AGE_YEARS not in found and all(number_of(str(row[AGE.name])) is not None for row in rows if AGE.name in row):
        found.append(AGE_YEARS)
    if AGE_YEARS in found and AGE not in found:  # of years, groups follow
        found.append(AGE)
    return [_measured(task, rows, names) for task in found]


def _measured(task: Task, rows: Rows, names: Sequence[str]) -> Task:
    """A number's task as it is, with the spread of what is there."""
    if task.kind != "regression":
        return task
    task = replace(task, classes=())
    column = _column(names, task.name, LABEL) or _column(names, task.name, PREDICTED)
    return task.of.measured(task, [task.of.read(task, row[column], "") for row in rows if column in row])


def _read(task: Task, cell: Any, where: str) -> Any:
    """A cell as a label; of years the group and the year."""
    if task == BUILT_IN.get(task.name) and task.name in (AGE.name, AGE_YEARS.name) and cell not in task.classes:
        return read_labels({AGE.name: str(cell)}, [AGE.name], where, "middle").get(task.name)
    return task.of.read(task, cell, where)


def _cells(task: Task, rows: Rows, ends: Sequence[str]) -> list[Any]:
    """A task's cells, None where there is none; of years of age those of the column age."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    other = {AGE.name: AGE_YEARS.name, AGE_YEARS.name: AGE.name}.get(task.name)
    column = _column(names, task.name, ends) or (_column(names, other, ends) if other else None)
    return [row.get(column) if column else None for row in rows]


def _labels(path: Path, task: Task, rows: Rows, ids: Sequence[str]) -> np.ndarray:
    cells = _cells(task, rows, LABEL)
    return task.of.array(task, [None if c is None else _read(task, c, f"{path}: {i}") for c, i in zip(cells, ids, strict=True)])


def _logits(path: Path, task: Task, rows: Rows, ids: Sequence[str]) -> tuple[np.ndarray, bool]:
    """What a head would have given for the answers `[N, W]`, and whether they say how sure they are.

    Raises UserError for a row without an answer: no figure can count it as right or wrong.
    """
    cells = [[] if cell is None and task.kind == "multi-label" else cell for cell in _cells(task, rows, PREDICTED)]  # none of the labels
    missing = [i for cell, i in zip(cells, ids, strict=True) if cell is None]
    if missing:
        raise UserError(f"{path}: {len(missing)} rows have no answer to {task.name} (first: {missing[0]}): leave them out, or answer them")
    answers = [_read(task, cell, f"{path}: {i}") for cell, i in zip(cells, ids, strict=True)]
    if task.kind == "regression":
        return (task.of.array(task, answers)[:, None] - task.center) / task.scale, False
    columns = [f"{task.name}_{name}" for name in task.classes]
    if rows and all(column in row for row in rows for column in columns):
        shares = np.array([[_share(path, row[column], i) for column in columns] for row, i in zip(rows, ids, strict=True)])
        if task.kind == "multi-label":
            return np.log(np.maximum(shares, LEAST)) - np.log(np.maximum(1 - shares, LEAST)), True
        return np.log(np.maximum(shares / np.maximum(shares.sum(1, keepdims=True), LEAST), LEAST)), True
    if task.kind == "multi-label":
        return np.where(task.of.array(task, answers) > 0, 1.0, -1.0), False
    sure = [row.get(f"{task.name}{end}") for row in rows for end in SURE if f"{task.name}{end}" in row] or [None] * len(rows)
    sure = sure if len(sure) == len(rows) else [None] * len(rows)
    said = np.array([np.nan if cell is None else _share(path, cell, i) for cell, i in zip(sure, ids, strict=True)])
    given, count = ~np.isnan(said).any(), task.num_classes
    share = np.clip(said if given else np.ones(len(rows)), 1 / count + 1e-6, 1.0)[:, None]
    chosen = np.eye(count)[np.array(answers, int)]
    return np.log(np.maximum(chosen * share + (1 - chosen) * (1 - share) / (count - 1), LEAST)), bool(given)


def _share(path: Path, cell: Any, where: str) -> float:
    """A probability, which may be in percent. Raises UserError for anything else."""
    number = number_of(str(cell).removesuffix("%").strip())
    if number is None or not 0 <= number <= 100:
        raise UserError(f"{path}: {where}: {cell!r} is no probability")
    return number / 100 if number > 1 or str(cell).endswith("%") else number


def _matched(path: Path, ids: Sequence[str], labelled: Predictions) -> list[int]:
    """Where each row's record stands among the labelled ones, by its id or, alone, by its file's name; -1 where it is none."""
    whole = {str(name): place for place, name in enumerate(labelled.id)}
    stems: dict[str, int] = {}
    for name, place in whole.items():
        stem = Path(name).stem.casefold()
        stems[stem] = -2 if stem in stems else place
    places = [whole.get(one, stems.get(Path(one).stem.casefold(), -1)) for one in ids]
    if any(place == -2 for place in places):
        raise UserError(f"{path}: {ids[places.index(-2)]} may be several records: give their whole ids, as {labelled.id[0]}")
    found = [place for place in places if place >= 0]
    if not found:
        raise UserError(f"{path}: none of its rows is of a record there ({ids[0]} ...; the records: {labelled.id[0]} ...)")
    if len(set(found)) < len(found):
        raise UserError(f"{path}: two rows are of one record")
    if len(found) < len(places) or len(found) < len(labelled):
        tell(f"{path}: {len(found):,} of {len(places):,} rows are of the {len(labelled):,} records; the figures are of these alone")
    return places
