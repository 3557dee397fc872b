"""Sources of a user's own tasks: rows of an image and cells, whose tasks a file describes, the source declares, or the cells show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxface.data.cells import read_labels
from jaxface.data.discovery import Cell, discover, named
from jaxface.data.faces import Box
from jaxface.data.records import Record
from jaxface.data.sources.base import Reading, Skipped, Source
from jaxface.data.tables import plain
from jaxface.data.task_files import read_tasks
from jaxface.data.tasks import AGE, AGE_YEARS, BUILT_IN, Task
from jaxface.errors import UserError, tell

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".avif", ".jp2", ".jfif", ".ppm")
"""Endings of files that are pictures."""


@dataclass(frozen=True)
class Row:
    """An image with its cells.

    Attributes:
      id: stable name within the source.
      image: path of the file, or its encoded bytes.
      cells: what is not blank, by the columns' names as written.
      split: train, validation or test.
      where: file and line, for messages.
      box: x0, y0, x1, y1 of what the labels are about, in pixels; None for the whole image.
      person: whom or what several records show, so that they stay in one split.
    """

    id: str
    image: Path | bytes
    cells: Mapping[str, Cell]
    split: str = "train"
    where: str = ""
    box: Box | None = None
    person: str = ""


@dataclass
class Columns:
    """What is known of the columns before their cells are looked at.

    Attributes:
      chosen: those to read, as written; all others if empty.
      declared: tasks by column, as the source itself says.
    """

    chosen: tuple[str, ...] = ()
    declared: dict[str, Task] = field(default_factory=dict)


class Labelled(Source):
    """A source of rows. Its tasks are those of `--tasks-file`; without one, those that it declares or its cells show."""

    takes = ("straddling", "tasks_file", "columns")

    def rows(self, folder: Path, options: Reading, columns: Columns) -> Iterator[Row | Skipped]:
        """The rows in a fixed order; what the source says of its columns is put into `columns`."""
        raise NotImplementedError

    def records(self, folder: Path, options: Reading) -> Iterable[Record | Skipped]:
        return self.read(folder, options)[1]

    def read(self, folder: Path, options: Reading) -> tuple[tuple[Task, ...], Iterable[Record | Skipped]]:
        columns = Columns(tuple(word.partition("=")[2] or word for word in options.columns if word.partition("=")[0] not in ROLES))
        rows = list(self.rows(folder, options, columns))
        real = [row for row in rows if isinstance(row, Row)]
        tasks = self.tasks(real, options, columns)
        return tuple(dict.fromkeys(tasks.values())), (row if isinstance(row, Skipped) else record_of(row, tasks, options) for row in rows)

    def tasks(self, rows: list[Row], options: Reading, columns: Columns) -> dict[str, Task]:
        """The tasks by their columns. Raises UserError where there is none, or a described one has no column."""
        cells: dict[str, list[Cell]] = {}
        for row in rows:
            for column, cell in row.cells.items():
                cells.setdefault(column, []).append(cell)
        if options.tasks_file is not None:
            return described(read_tasks(options.tasks_file), cells, options.tasks_file)
        found: dict[str, Task] = {}
        unread = []
        for column, own in cells.items():
            if columns.chosen and column not in columns.chosen:
                unread.append(column)
                continue
            task = columns.declared.get(column) or built_in(column, own, options) or discover(column, own)
            if isinstance(task, str):
                unread.append(f"{column} ({task})")
            elif task.name in [other.name for other in found.values()]:
                raise UserError(f"columns {column!r} and another are both a task {task.name}: name one in a --tasks-file, with `column`")
            else:
                found[column] = task
        if unread:
            tell(f"did not read the columns {', '.join(unread)}")
        if not found and rows:
            raise UserError(f"{self.name}: no column to learn from; found {', '.join(cells) or 'none'}")
        return found


ROLES = ("path", "split", "person")
"""Columns that are no tasks."""


def described(tasks: Mapping[str, Task], cells: Mapping[str, object], path: Path) -> dict[str, Task]:
    """The tasks of a file by their columns. Raises UserError for one that no column is of."""
    words = {plain(column): column for column in cells} | {plain(named(column)[0] or column): column for column in cells}
    words |= {plain(column): column for column in cells}
    missing = [task.name for task in tasks.values() if plain(task.column or task.name) not in words]
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)}; found {', '.join(cells)} (a task's `column` says what it is called)")
    return {words[plain(task.column or task.name)]: task for task in tasks.values()}


def built_in(column: str, cells: Iterable[Cell], options: Reading) -> Task | None:
    """The built-in task that a column has the name of, if all of its cells are labels of it."""
    task = BUILT_IN.get(plain(column))
    try:
        for cell in cells if task else ():
            read_labels({task.name: str(cell)}, [task.name], "", options.straddling)
    except UserError:
        return None
    return task


def record_of(row: Row, tasks: Mapping[str, Task], options: Reading) -> Record:
    """The record of a row. Raises UserError for a cell that is no label."""
    labels: dict[str, Any] = {}
    for column, task in tasks.items():
        if (cell := row.cells.get(column)) in (None, ""):
            continue
        if task == BUILT_IN.get(task.name) and task.name in (AGE.name, AGE_YEARS.name):
            labels |= read_labels({task.name: str(cell)}, [task.name], row.where, options.straddling)
        else:
            labels[task.name] = task.of.read(task, cell, row.where)
    return Record(row.id, row.split, row.image, labels, row.box, row.person)
