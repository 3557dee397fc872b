"""A table of one's own: CSV or Parquet with a column path and any of age, gender, emotion, split, person, and a face box."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jaxface.data.cells import box_columns, located, read_box, read_labels, read_split, with_box
from jaxface.data.records import Record
from jaxface.data.sources.base import Reading, Source, register_source
from jaxface.data.tables import Table
from jaxface.data.tasks import TASKS
from jaxface.errors import UserError


@register_source("manifest")
class Manifest(Source):
    """The folder is the table's file, or a folder with `manifest.csv` or `manifest.parquet` in it; image paths are relative to it.

    Columns go by their usual names (see `jaxface.data.tables`), boxes by corners or by a corner and sides. A row without a box is a face
    crop already, unless `--crop.detector` names a detector.
    """

    layout = "a file manifest.csv or manifest.parquet (or its path) with the columns path,age,gender,emotion,split"

    def records(self, folder: Path, options: Reading) -> Iterator[Record]:
        path = folder
        if folder.is_dir():
            path = next((p for p in (folder / "manifest.csv", folder / "manifest.parquet") if p.exists()), folder / "manifest.csv")
        names = Table(self.require(path), ()).names
        try:
            box_names, kind = box_columns(names) or ((), "")
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        table = Table(path, ("path", *TASKS, "split", "person", *box_names))
        labelled = [task for task in TASKS if task in table.columns]
        if "path" not in table.columns or not labelled:
            raise UserError(f"{path}: expected a column path and at least one of {', '.join(TASKS)}; found {', '.join(names)}")
        for where, row in table.rows():
            if "path" not in row:
                raise UserError(f"{where}: no path")
            box = read_box(row, box_names, where, kind)
            yield Record(
                id=with_box(row["path"], box),
                split=read_split(row.get("split", "train"), where),
                image=located(path.parent, row["path"], where),
                labels=read_labels(row, labelled, where, options.straddling, table.note),
                box=box,
                person=row.get("person", ""),
            )
