"""FairFace (Kärkkäinen and Joo 2021): faces cut out by its authors; their validation set tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jaxface.data.cells import inside, read_labels
from jaxface.data.records import Record
from jaxface.data.sources.base import Reading, Source, register_source
from jaxface.data.tables import rows
from jaxface.errors import UserError

TABLES = {"train": "fairface_label_train.csv", "test": "fairface_label_val.csv"}


@register_source("fairface")
class FairFace(Source):
    """`train/1.jpg,50-59,Male,East Asian,True`; the oldest are `more than 70`."""

    takes = ("straddling",)
    layout = f"{TABLES['train']} and {TABLES['test']} (file,age,gender,race,service_test), and the images train/1.jpg, val/1.jpg"

    def records(self, folder: Path, options: Reading) -> Iterator[Record]:
        for split, name in TABLES.items():
            for where, row in rows(self.require(folder / name), ("file", "age", "gender"), ignored=("race", "service_test")):
                labels = read_labels(row, ("age", "gender"), where, options.straddling)
                if "file" not in row:
                    raise UserError(f"{where}: no file")
                yield Record(row["file"], split, inside(folder, row["file"], where), labels)
