"""RAF-DB (Li et al. 2017), basic emotions: aligned crops or original photos, and one list of labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxface.data.records import Record
from jaxface.data.sources.base import Source, register_source
from jaxface.errors import UserError

LIST = Path("basic/EmoLabel/list_patition_label.txt")


@register_source("raf_db")
class RafDb(Source):
    """`train_00001.jpg 5` in the list; 1 surprise, 2 fear, 3 disgust, 4 happy, 5 sad, 6 angry, 7 neutral."""

    layout = f"{LIST} and basic/Image/aligned/NAME_aligned.jpg (or basic/Image/original/NAME.jpg)"

    def records(self, folder: Path, options: dict[str, Any]) -> Iterator[Record]:
        path = self.require(folder / LIST)
        aligned = (folder / "basic/Image/aligned").is_dir()
        images = folder / "basic/Image/aligned" if aligned else self.require(folder / "basic/Image/original")
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if not line.strip():
                continue
            name, _, label = line.strip().rpartition(" ")
            split = name.partition("_")[0]
            if not name or split not in ("train", "test"):
                raise UserError(f"{path}:{number}: expected `train_00001.jpg 5`, got {line.strip()!r}")
            if label not in "1234567" or len(label) != 1:
                raise UserError(f"{path}:{number}: emotion {label!r} is out of range (1 to 7)")
            stem = Path(name).stem
            file = images / (f"{stem}_aligned.jpg" if aligned else f"{stem}.jpg")
            yield Record(id=name, split=split, image=file, labels={"emotion": int(label) - 1})
