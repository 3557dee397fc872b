"""A table of one's own: CSV or Parquet with a column `path` and any of age, gender, emotion, split, box_x0..box_y1, person."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from jaxface.data.records import SPLITS, Record
from jaxface.data.sources.base import Source, register_source
from jaxface.data.tasks import AGE, AGE_STARTS, TASKS, age_group, age_labels
from jaxface.errors import UserError

BOX = ("box_x0", "box_y0", "box_x1", "box_y1")
SHORT = {"m": "male", "f": "female"}


@register_source("manifest")
class Manifest(Source):
    """The folder is the table's file, or a folder with `manifest.csv` or `manifest.parquet` in it; image paths are relative to it."""

    layout = "a file manifest.csv or manifest.parquet (or its path) with the columns path,age,gender,emotion,split"

    def records(self, folder: Path, options: dict[str, Any]) -> Iterator[Record]:
        path = folder
        if folder.is_dir():
            path = next((p for p in (folder / "manifest.csv", folder / "manifest.parquet") if p.exists()), folder / "manifest.csv")
        table = read_table(self.require(path))
        root = path.parent.resolve()
        labelled = [task for task in TASKS if task in table.column_names]
        if "path" not in table.column_names or not labelled:
            found = ", ".join(table.column_names)
            raise UserError(f"{path}: expected a column path and at least one of {', '.join(TASKS)}; found {found}")
        self.splits_by_column = "split" in table.column_names
        for number, row in enumerate(table.to_pylist(), 2):
            where = f"{path}:{number}"
            row = {name: str(value).strip() for name, value in row.items() if value is not None and str(value).strip()}
            if "path" not in row:
                raise UserError(f"{where}: no path")
            image = (root / row["path"]).resolve()
            if not image.is_relative_to(root):
                raise UserError(f"{where}: {row['path']} lies outside {path.parent}")
            yield Record(
                id=row["path"],
                split=read_split(row.get("split", "train"), where),
                image=image,
                labels={task: read_label(task, row[task], where) for task in labelled if task in row} | read_years(row.get(AGE.name, "")),
                box=read_box(row, where),
                person=row.get("person", ""),
            )


def read_table(path: Path) -> pa.Table:
    """A CSV file with every column as text, or a Parquet file. Raises UserError."""
    try:
        if path.suffix == ".parquet":
            return pa.parquet.read_table(path)
        header = path.open(encoding="utf-8", errors="replace").readline().strip().lstrip("\ufeff").split(",")
        types = {name.strip(): pa.string() for name in header}
        return pa.csv.read_csv(path, convert_options=pa.csv.ConvertOptions(column_types=types, strings_can_be_null=True))
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None


def read_split(text: str, where: str) -> str:
    if text not in SPLITS:
        raise UserError(f"{where}: split {text!r}; known: {', '.join(SPLITS)}")
    return text


def read_label(task: str, text: str, where: str) -> int:
    """A class from its name; ages also from years or a range of years inside one group."""
    classes = TASKS[task].classes
    name = SHORT.get(text.lower(), text.lower()) if task == "gender" else text.lower()
    if name in classes:
        return classes.index(name)
    if task == AGE.name:
        return read_age(name, where)
    raise UserError(f"{where}: {task} {text!r} is out of range; known: {', '.join(classes)}")


def read_age(text: str, where: str) -> int:
    first, dash, last = text.partition("-") if not text.startswith("-") else (text, "", "")
    try:
        groups = {age_group(float(part)) for part in ((first, last) if dash else (first,))}
    except (ValueError, UserError):
        raise UserError(f"{where}: age {text!r} is out of range (years 0 to 149, or one of {', '.join(AGE.classes)})") from None
    if len(groups) > 1:
        starts = ", ".join(map(str, AGE_STARTS))
        raise UserError(f"{where}: age {text!r} straddles two groups (they start at {starts})")
    return groups.pop()


def read_years(text: str) -> dict[str, int]:
    """The labels of an age that is given as a number of years, which `read_age` has looked at; none for a group."""
    return age_labels(float(text)) if text.replace(".", "", 1).isdecimal() else {}


def read_box(row: dict[str, str], where: str) -> tuple[float, float, float, float] | None:
    if not any(name in row for name in BOX):
        return None
    try:
        return tuple(float(row[name]) for name in BOX)
    except (KeyError, ValueError) as error:
        raise UserError(f"{where}: the face box needs four numbers {', '.join(BOX)} ({error})") from None
