"""The one reader of tables: CSV or Parquet, whose columns are matched by what they are called everywhere.

Names match without regard to case, blanks and hyphens, and by the usual synonyms. Nothing is passed over in silence: what was read by
another name and what was not read is said in one line; a name twice, or one that nearly is a known one, is refused.
"""

from __future__ import annotations

import codecs
import csv
import math
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxface.errors import UserError, tell

if TYPE_CHECKING:
    from pyarrow import RecordBatch

SYNONYMS: dict[str, tuple[str, ...]] = {
    "path": (
        *("file", "filename", "file_name", "filepath", "file_path", "image", "img", "image_path", "img_path", "image_name", "img_name"),
        *("image_file", "photo", "photo_path"),
    ),
    "age": ("years", "age_group", "agegroup"),
    "gender": ("sex",),
    "emotion": ("expression", "facial_expression"),
    "split": ("subset", "partition"),
    "person": ("person_id", "subject", "subject_id", "identity", "identity_id", "pid"),
}
"""What the columns of face data are called, too."""
SEPARATORS = (";", "|")
"""Between the labels of one cell."""
NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
NEAR = 0.8
"""Likeness (of `difflib`) from which an unknown name is taken for a slip of the pen."""


def plain(name: str) -> str:
    """A name without what does not tell names apart."""
    return re.sub(r"[\s_-]+", "_", name.strip()).casefold()


def parts_of(text: str | list[str], names: Sequence[str] = ()) -> list[str]:
    """The labels in a cell of several: apart by `;` or `|`, else by commas, none of them in a label's name; `none` alone is no label."""
    if isinstance(text, list):
        return text
    if text in names:
        return [text]
    separator = next((mark for mark in SEPARATORS if mark in text), ",")
    parts = [part.strip() for part in text.split(separator)]
    return [] if parts in (["none"], ["[]"]) and "none" not in names else [part for part in parts if part]


def number_of(text: str) -> float | None:
    """A finite number as tables write it, its mark a point or a comma; None for any other text."""
    number = float(text.replace(",", ".")) if NUMBER.fullmatch(text) else None
    return number if number is not None and math.isfinite(number) else None


class Table:
    """A CSV or Parquet file whose wanted columns are known.

    Args:
      path: the file.
      wanted: names of the columns to read; those that the file has are `columns`.
      needed: those of them that it must have.
      ignored: further names that are known, and not worth a word.

    Attributes:
      names: of all columns, as the file writes them.
      columns: where each wanted column stands.

    Raises UserError if the file cannot be read, lacks a needed column, has a column twice, or one whose name nearly is a wanted one.
    """

    def __init__(self, path: Path, wanted: Collection[str], *, needed: Collection[str] = (), ignored: Collection[str] = ()) -> None:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: no file but a folder, a pipe or a device")  # it is read more than once
        self.path, self.names = path, next(_read(path))[1]
        self.columns: dict[str, int] = {}
        self.said: dict[str, None] = {}
        known = {plain(word): name for name in wanted for word in (*SYNONYMS.get(name, ()), name)}
        unread = []
        for place, (written, name) in enumerate((name, plain(name)) for name in self.names):
            if name and name in [plain(other) for other in self.names[:place]]:
                raise UserError(f"{path}: two columns {written!r}: remove one")
            if name not in known:
                unread += [written] if name and name not in map(plain, ignored) else []
                continue
            column = known[name]
            if column in self.columns:
                raise UserError(f"{path}: columns {self.names[self.columns[column]]!r} and {written!r} are both {column}: remove one")
            self.columns[column] = place
            if plain(column) != name:
                self.note(f"{written} as {column}")
        self.unread = unread
        for written in unread:
            near = get_close_matches(plain(written), known, 1, NEAR)
            if near and known[near[0]] not in self.columns:
                raise UserError(f"{path}: column {written!r}: if it is {near[0]}, name it so; if not, give it a name less like that")
        missing = [name for name in needed if name not in self.columns]
        if missing:
            raise UserError(f"{path}: no column {', '.join(missing)}; found {', '.join(self.names)}")

    def note(self, text: str) -> None:
        """Keeps what was understood for what, `sex as gender`, to be said once."""
        self.said[text] = None

    def rows(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Each row: its place, `file:line`, and the wanted cells that are not blank, as text. Says at the end what was understood how.

        Raises UserError for a row of another length.
        """
        table = _read(self.path, [*self.columns.values()])
        next(table)
        for number, cells in table:
            where = f"{self.path}:{number}"
            if len(cells) != len(self.names):
                raise UserError(f"{where}: {len(cells)} cells, but {len(self.names)} columns")
            if any(cells):
                yield where, {name: cells[place] for name, place in self.columns.items() if cells[place]}
        parts = [f"read {', '.join(self.said)}"] if self.said else []
        parts += [f"did not read the columns {', '.join(self.unread)}"] if self.unread else []
        if parts:
            tell(f"{self.path}: {'; '.join(parts)}")


def rows(path: Path, needed: Sequence[str], *, ignored: Collection[str] = ()) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a table with exactly these columns. Raises UserError as `Table`."""
    return Table(path, needed, needed=needed, ignored=ignored).rows()


def pairs(path: Path, value: str, key: str | None = None) -> Mapping[str, str]:
    """One column by another, by the first if no `key` is named. Raises UserError as `Table`, and for a key with two values."""
    key = key or Table(path, ()).names[0]
    found: dict[str, str] = {}
    for where, row in Table(path, (key, value), needed=(key, value), ignored=Table(path, ()).names).rows():
        if key in row and found.setdefault(row[key], row.get(value, "")) != row.get(value, ""):
            raise UserError(f"{where}: {row[key]} has two values of {value}")
    return found


LONGEST_CELL = 2**26
"""Characters: columns that nobody asks for may hold whole texts or pictures."""


def _read(path: Path, places: Collection[int] = ()) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of every row, the columns' names first. Raises UserError.

    Args:
      places: of the columns whose cells are asked for; of others it is only told whether they are blank.
    """
    try:
        yield from _read_parquet(path, places) if path.suffix.lower() in (".parquet", ".pq") else _read_csv(path)
    except UnicodeError as error:
        raise UserError(f"{path}: cannot be read ({error}): save it as UTF-8") from None
    except (OSError, ValueError, OverflowError, csv.Error, *_of_arrow()) as error:
        raise UserError(f"{path}: cannot be read ({(str(error) or type(error).__name__).splitlines()[0]})") from None


def _read_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Cells parted by commas, semicolons or tabs: by what the header has most of; in UTF-8, or in UTF-16 that says so."""
    csv.field_size_limit(LONGEST_CELL)
    with path.open("rb") as file:
        encoding = "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    with path.open(encoding=encoding, newline="") as file:
        header = file.readline()
        file.seek(0)
        reader = csv.reader(file, delimiter=max(",;\t", key=header.count), skipinitialspace=True, strict=True)
        found = ((reader.line_num, [cell.strip() for cell in cells]) for cells in reader if cells)
        yield next(found, (1, []))
        yield from found


def _of_arrow() -> tuple[type[Exception], ...]:
    """What Arrow raises, where it has been asked."""
    return (sys.modules["pyarrow"].ArrowException,) if "pyarrow" in sys.modules else ()


def _read_parquet(path: Path, places: Collection[int]) -> Iterator[tuple[int, list[str]]]:
    from pyarrow.parquet import ParquetFile  # slow to import

    file = ParquetFile(path)
    yield 1, [name.strip() for name in file.schema_arrow.names]
    for start, batch in _numbered(file.iter_batches(4096)):
        columns = [
            [_text(cell) for cell in column.to_pylist()] if place in places else ["?" * there for there in column.is_valid().to_pylist()]
            for place, column in enumerate(batch.columns)
        ]
        yield from ((start + index, list(row)) for index, row in enumerate(zip(*columns, strict=True)))


def _numbered(batches: Iterator[RecordBatch]) -> Iterator[tuple[int, RecordBatch]]:
    """Batches with the number of their first row; the header is row 1."""
    start = 2
    for batch in batches:
        yield start, batch
        start += batch.num_rows


def _text(cell: Any) -> str:
    """A cell of Parquet as CSV would have it: nothing for null and not-a-number, the items of a list between semicolons."""
    if isinstance(cell, list):
        return SEPARATORS[0].join(map(_text, cell)) or "none"
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    return (cell.decode(errors="backslashreplace") if isinstance(cell, bytes) else str(cell)).strip()
