"""A table of one's own: CSV or Parquet with a column `path` and any of age, gender, emotion, split, box_x0..box_y1, person."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jaxface.data.records import Record
from jaxface.data.sources.base import Reading, Source, register_source
from jaxface.data.tables import columns, inside, read_box, read_labels, read_split, rows, with_box
from jaxface.data.tasks import TASKS
from jaxface.errors import UserError

BOX = ("box_x0", "box_y0", "box_x1", "box_y1")


@register_source("manifest")
class Manifest(Source):
    """The folder is the table's file, or a folder with `manifest.csv` or `manifest.parquet` in it; image paths are relative to it.

    A row without a box is a face crop already, unless `--crop.detector` names a detector.
    """

    layout = "a file manifest.csv or manifest.parquet (or its path) with the columns path,age,gender,emotion,split"

    def records(self, folder: Path, options: Reading) -> Iterator[Record]:
        path = folder
        if folder.is_dir():
            path = next((p for p in (folder / "manifest.csv", folder / "manifest.parquet") if p.exists()), folder / "manifest.csv")
        names = columns(self.require(path))
        labelled = [task for task in TASKS if task in names]
        if "path" not in names or not labelled:
            raise UserError(f"{path}: expected a column path and at least one of {', '.join(TASKS)}; found {', '.join(names)}")
        for where, row in rows(path):
            if "path" not in row:
                raise UserError(f"{where}: no path")
            box = read_box(row, BOX, where)
            yield Record(
                id=with_box(row["path"], box),
                split=read_split(row.get("split", "train"), where),
                image=inside(path.parent, row["path"], where),
                labels=read_labels(row, labelled, where, options.straddling),
                box=box,
                person=row.get("person", ""),
            )
