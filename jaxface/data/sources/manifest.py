"""A table of one's own: CSV or Parquet with a column path, labels, and maybe split, person and a face box."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from jaxface.data.cells import box_columns, located, read_box, read_labels, read_split, with_box
from jaxface.data.records import Record
from jaxface.data.sources.base import Reading, Skipped, register_source
from jaxface.data.sources.huggingface import holds_images, of_pictures
from jaxface.data.sources.labelled import ROLES, Columns, Labelled, Row
from jaxface.data.tables import Table
from jaxface.data.tasks import TASKS, Task
from jaxface.errors import UserError, tell


@register_source("manifest")
class Manifest(Labelled):
    """The folder is the table's file, or a folder with `manifest.csv` or `manifest.parquet` in it; image paths are relative to it.

    Columns go by their usual names (see `jaxface.data.tables`), boxes by corners or by a corner and sides. A row without a box is a
    crop already, unless `--crop.detector` names a detector. Columns of known tasks are read as such; where there is none, or `--columns` or
    `--tasks-file` are given, each column is a task of its own, of the kind that its cells show.
    """

    layout = "a file manifest.csv or manifest.parquet (or its path) with the columns path,age,gender,emotion,split or own labels"

    def read(self, folder: Path, options: Reading) -> tuple[tuple[Task, ...], Iterable[Record | Skipped]]:
        path = self.table(folder)
        names, boxes, kind = columns_of(path)
        own = options.tasks_file or options.columns or holds_images(path)
        if own or not any(task in Table(path, ("path", *TASKS, *ROLES, *boxes)).columns for task in TASKS):
            return super().read(folder, options)
        return tuple(TASKS.values()), self.of_faces(path, names, boxes, kind, options)

    def table(self, folder: Path) -> Path:
        """The table's file."""
        if not folder.is_dir():
            return self.require(folder)
        tables = [folder / "manifest.csv", folder / "manifest.parquet"]
        return self.require(next((path for path in tables if path.exists()), tables[0]))

    def of_faces(self, path: Path, names: Sequence[str], boxes: tuple[str, ...], kind: str, options: Reading) -> Iterator[Record]:
        """The records of the tasks that are known."""
        table = Table(path, ("path", *TASKS, "split", "person", *boxes))
        labelled = [task for task in TASKS if task in table.columns]
        if "path" not in table.columns:
            raise UserError(f"{path}: expected a column path and at least one of {', '.join(TASKS)}; found {', '.join(names)}")
        for where, row in table.rows():
            if "path" not in row:
                raise UserError(f"{where}: no path")
            box = read_box(row, boxes, where, kind)
            yield Record(
                id=with_box(row["path"], box),
                split=read_split(row.get("split", "train"), where),
                image=located(path.parent, row["path"], where),
                labels=read_labels(row, labelled, where, options.straddling, table.note),
                box=box,
                person=row.get("person", ""),
            )

    def rows(self, folder: Path, options: Reading, columns: Columns) -> Iterator[Row | Skipped]:
        path = self.table(folder)
        if holds_images(path):
            yield from of_pictures(path, columns)
            return
        names, boxes, kind = columns_of(path)
        roles = Table(path, (*ROLES, *boxes), ignored=names).columns
        places = {role: names[place] for role, place in roles.items()}
        for word in options.columns:
            role, told, column = word.partition("=")
            if (column if told else role) not in names:
                raise UserError(f"{path}: no column {column if told else role}; found {', '.join(names)}")
            if told and role not in ROLES:
                raise UserError(f"--columns {word}: expected a column's name, or one of {', '.join(f'{one}=NAME' for one in ROLES)}")
            places |= {role: column} if told else {}
        own = [name for name in names if name and name not in places.values()]
        if "path" not in places:
            found = [name for name in own if self.holds_paths(path, name)]
            if len(found) != 1:
                raise UserError(f"{path}: expected a column path and at least one of {', '.join(TASKS)}; found {', '.join(names)}")
            places["path"] = found[0]
            own.remove(found[0])
            tell(f"{path}: read {found[0]} as path")
        for where, cells in whole_rows(path, names):
            row = {role: cells[name] for role, name in places.items() if name in cells}
            if "path" not in row:
                raise UserError(f"{where}: no path")
            box = read_box(row, boxes, where, kind)
            split, image = read_split(row.get("split", "train"), where), located(path.parent, row["path"], where)
            labels = {name: cells[name] for name in own if name in cells}
            yield Row(with_box(row["path"], box), image, labels, split, where, box, row.get("person", ""))

    def holds_paths(self, path: Path, name: str) -> bool:
        """Whether the first cell of a column is the path of a file."""
        first = next((cells[name] for _, cells in whole_rows(path, [name]) if name in cells), "")
        return bool(first) and Path(first).suffix != "" and (path.parent / first).is_file()


def columns_of(path: Path) -> tuple[list[str], tuple[str, ...], str]:
    """The names of a table's columns, those of a face box, and its layout."""
    names = Table(path, ()).names
    try:
        return names, *(box_columns(names) or ((), ""))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def whole_rows(path: Path, names: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a table with the cells of these columns under the names that the file has."""
    table = Table(path, ())
    table.columns = {name: table.names.index(name) for name in names if name}
    table.unread = []
    return table.rows()
