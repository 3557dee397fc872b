"""What the sources' tables hold: rows with their place for messages, and cells as labels, boxes and paths."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from jaxface.data.faces import Box
from jaxface.data.records import SPLITS
from jaxface.data.tasks import AGE, AGE_STARTS, TASKS, age_group, age_labels
from jaxface.errors import UserError

SHORT = {"m": "male", "f": "female"}


def columns(path: Path) -> list[str]:
    """The names of a table's columns. Raises UserError if the file cannot be read."""
    return next(_read(path))[1]


def rows(path: Path, *, needed: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, str]]]:
    """Each row of a CSV or Parquet file: its place, `file:line`, and its cells that are not blank, as text.

    Raises UserError if the file cannot be read, lacks a needed column, or has a row of another length.
    """
    table = _read(path)
    names = next(table)[1]
    missing = [name for name in needed if name not in names]
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)}; found {', '.join(names)}")
    for number, cells in table:
        where = f"{path}:{number}"
        if len(cells) != len(names):
            raise UserError(f"{where}: {len(cells)} cells, but {len(names)} columns")
        yield where, {name: cell for name, cell in zip(names, cells, strict=True) if cell}


def _read(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of every row, the columns' names first. Raises UserError."""
    try:
        yield from (_read_parquet if path.suffix == ".parquet" else _read_csv)(path)
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None


def _read_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, skipinitialspace=True)
        found = ((reader.line_num, [cell.strip() for cell in cells]) for cells in reader if cells)
        yield next(found, (1, []))
        yield from found


def _read_parquet(path: Path) -> Iterator[tuple[int, list[str]]]:
    file = pa.parquet.ParquetFile(path)
    yield 1, [name.strip() for name in file.schema_arrow.names]
    rows = (row for batch in file.iter_batches(4096) for row in zip(*batch.to_pydict().values(), strict=True))
    yield from ((number, ["" if cell is None else str(cell).strip() for cell in row]) for number, row in enumerate(rows, 2))


def inside(root: Path, name: str, where: str) -> Path:
    """The path of a file below `root`. Raises UserError for one that leads out of it."""
    path = os.path.normpath(name)
    if os.path.isabs(path) or path.split(os.sep)[0] == os.pardir:
        raise UserError(f"{where}: {name} lies outside {root}")
    return root / path


def read_split(text: str, where: str) -> str:
    if text not in SPLITS:
        raise UserError(f"{where}: split {text!r}; known: {', '.join(SPLITS)}")
    return text


def read_labels(row: Mapping[str, str], tasks: Sequence[str], where: str, straddling: str = "refuse") -> dict[str, int]:
    """The classes of the tasks that the row has a cell for."""
    found: dict[str, int] = {}
    for task in tasks:
        if task in row:
            found |= read_age(row[task], where, straddling) if task == AGE.name else {task: read_label(task, row[task], where)}
    return found


def read_label(task: str, text: str, where: str) -> int:
    """A class from its name. Raises UserError for anything else."""
    classes = TASKS[task].classes
    name = SHORT.get(text.lower(), text.lower()) if task == "gender" else text.lower()
    if name not in classes:
        raise UserError(f"{where}: {task} {text!r} is out of range; known: {', '.join(classes)}")
    return classes.index(name)


def read_age(text: str, where: str, straddling: str = "refuse") -> dict[str, int]:
    """The labels that an age gives: one of the groups by name, `34`, `34.5` or `30-34` years.

    A range over several groups is refused, counted by its middle or gives no label, as `straddling` says.
    """
    if text in AGE.classes:
        return {AGE.name: AGE.classes.index(text)}
    first, dash, last = text.partition("-") if not text.startswith("-") else (text, "", "")
    try:
        years = [float(part) for part in ((first, last) if dash else (first,))]
        groups = {age_group(year) for year in years}
    except (ValueError, UserError):
        raise UserError(f"{where}: age {text!r} is out of range (years 0 to 149, or one of {', '.join(AGE.classes)})") from None
    if len(years) == 1:
        return age_labels(years[0])
    if len(groups) == 1:
        return {AGE.name: groups.pop()}
    if straddling == "refuse":
        starts = ", ".join(map(str, AGE_STARTS))
        raise UserError(f"{where}: age {text!r} straddles two groups (they start at {starts}); see --read.straddling")
    return {AGE.name: age_group(sum(years) / 2)} if straddling == "middle" else {}


def read_box(row: Mapping[str, str], names: Sequence[str], where: str) -> Box | None:
    """The box in the named cells x0, y0, x1, y1, or None where all are blank. Raises UserError for three of four."""
    if not any(name in row for name in names):
        return None
    try:
        return tuple(float(row[name]) for name in names)
    except (KeyError, ValueError) as error:
        raise UserError(f"{where}: the face box needs four numbers {', '.join(names)} ({error})") from None


def with_box(photo: str, box: Box | None) -> str:
    """The id of one face among a photo's."""
    return photo if box is None else f"{photo}@{','.join(f'{edge:g}' for edge in box)}"
