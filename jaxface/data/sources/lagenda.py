"""LAGENDA (Kuprashevich and Tolstykh 2023): whole scenes, one row a person."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jaxface.data.cells import inside, read_box, read_labels, with_box
from jaxface.data.records import Record
from jaxface.data.sources.base import Reading, Skipped, Source, register_source
from jaxface.data.tables import rows

TABLE = "lagenda_annotation.csv"
BOX = ("face_x0", "face_y0", "face_x1", "face_y1")
PERSONS = ("person_x0", "person_y0", "person_x1", "person_y1")
NOTHING = ("-1", "-1.0")


@register_source("lagenda")
class Lagenda(Source):
    """MiVOLO's table; -1 stands where a face was not seen or a label is missing. Only for training: it has no test split."""

    takes = ("straddling",)
    layout = f"{TABLE} (img_name,age,gender,{','.join(BOX)},person_x0...) and the images it names, beside it or in images/"

    def records(self, folder: Path, options: Reading) -> Iterator[Record | Skipped]:
        images = folder / "images" if (folder / "images").is_dir() else folder
        seen = set()
        for where, row in rows(self.require(folder / TABLE), ("img_name", "age", "gender", *BOX), ignored=PERSONS):
            row = {name: cell for name, cell in row.items() if cell not in NOTHING}
            box = read_box(row, BOX, where)
            name = with_box(row["img_name"], box)
            labels = read_labels(row, ("age", "gender"), where, options.straddling)
            if box is None or not labels or name in seen:
                reason = "no face box" if box is None else "no label" if not labels else "listed twice"
                yield Skipped(f"{name} (row {where.rpartition(':')[2]})", reason)
                continue
            seen.add(name)
            yield Record(name, "train", inside(images, row["img_name"], where), labels, box)
