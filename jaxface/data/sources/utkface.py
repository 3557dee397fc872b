"""UTKFace (Zhang et al. 2017): age and gender in the file's name, all of it for testing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from jaxface.data.cells import read_age
from jaxface.data.records import Record
from jaxface.data.sources.base import Reading, Skipped, Source, register_source
from jaxface.errors import printable

NAME = re.compile(r"(\d{1,3})_([01])_([0-4])_([^_.]+)\.jpe?g(\.chip\.jpg)?", re.ASCII | re.IGNORECASE)


@register_source("utkface")
class UtkFace(Source):
    """`[age]_[gender]_[race]_[date].jpg` (whole photos) or `....jpg.chip.jpg` (cut out and aligned); gender 0 male, 1 female.

    Where both are there the photos count, whose faces a detector finds: the thesis has 24,103 images, the authors' crops are 23,708.
    """

    takes = ("images",)
    layout = "images [age]_[gender]_[race]_[date].jpg or .jpg.chip.jpg, in the folder or in folders below it (part1, part2, part3)"

    def records(self, folder: Path, options: Reading) -> Iterator[Record | Skipped]:
        images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        chips = [path for path in images if path.name.lower().endswith(".chip.jpg")]
        photos = [path for path in images if not path.name.lower().endswith(".chip.jpg")]
        auto = photos if any(NAME.fullmatch(path.name) for path in photos) else chips or photos
        chosen = {"auto": auto, "originals": photos, "crops": chips}[options.images]
        for path in chosen:
            name = printable(str(path.relative_to(folder)))
            match = NAME.fullmatch(path.name)
            if match is None:
                yield Skipped(name, "the name is not [age]_[gender]_[race]_[date]")
                continue
            labels = read_age(match[1], name) | {"gender": int(match[2])}
            yield Record(name, "test", path, labels, is_crop=chosen is chips)
