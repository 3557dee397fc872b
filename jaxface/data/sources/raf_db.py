"""RAF-DB (Li et al. 2017), basic emotions: aligned crops or original photos, and one list of labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jaxface.data.faces import Box
from jaxface.data.records import Record
from jaxface.data.sources.base import Reading, Skipped, Source, register_source
from jaxface.errors import UserError

LIST = Path("basic/EmoLabel/list_patition_label.txt")
ALIGNED, ORIGINAL = Path("basic/Image/aligned"), Path("basic/Image/original")
ATTRIBUTES, BOXES = Path("basic/Annotation/manual"), Path("basic/Annotation/boundingbox")
UNSURE = 2
"""What stands in place of a gender that the annotators could not tell."""


@register_source("raf_db")
class RafDb(Source):
    """`train_00001.jpg 5` in the list; 1 surprise, 2 fear, 3 disgust, 4 happy, 5 sad, 6 angry, 7 neutral.

    Aligned crops where they are there (unless `options.images` says originals), else the original photos by the authors' boxes, or a
    detector where those are missing too. Genders come from the manual annotations, if they are there; a training face whose gender is
    unsure there is left out: the thesis's 9,215 faces of Table 3.2, each with a gender, are the published ones without those. The five age
    ranges are not read: four of them straddle our groups.
    """

    takes = ("images", "unsure")
    layout = f"{LIST} and {ALIGNED}/NAME_aligned.jpg (or {ORIGINAL}/NAME.jpg)"

    def records(self, folder: Path, options: Reading) -> Iterator[Record | Skipped]:
        path = self.require(folder / LIST)
        aligned = options.images == "crops" or (options.images == "auto" and (folder / ALIGNED).is_dir())
        images = self.require(folder / (ALIGNED if aligned else ORIGINAL))
        for number, line in enumerate(path.read_text(errors="backslashreplace").splitlines(), 1):
            if not line.strip():
                continue
            name, _, label = line.strip().rpartition(" ")
            split, stem = name.partition("_")[0], Path(name).stem
            if not name or split not in ("train", "test"):
                raise UserError(f"{path}:{number}: expected `train_00001.jpg 5`, got {line.strip()!r}")
            if label not in "1234567" or len(label) != 1:
                raise UserError(f"{path}:{number}: emotion {label!r} is out of range (1 to 7)")
            gender = read_gender(folder / ATTRIBUTES / f"{stem}_manu_attri.txt")
            if gender == UNSURE and split == "train" and options.unsure == "drop":
                yield Skipped(name, "the gender is unsure")
                continue
            yield Record(
                id=name,
                split=split,
                image=images / (f"{stem}_aligned.jpg" if aligned else f"{stem}.jpg"),
                labels={"emotion": int(label) - 1} | ({} if gender in (None, UNSURE) else {"gender": gender}),
                box=None if aligned else read_box_file(folder / BOXES / f"{stem}_boundingbox.txt"),
                is_crop=aligned,
            )


def read_gender(path: Path) -> int | None:
    """The gender in a file of five landmarks, gender (0 male, 1 female, 2 unsure), race and age range, one a line; None without a file."""
    if not path.exists():
        return None
    lines = path.read_text().split("\n")
    if len(lines) < 8 or lines[5].strip() not in ("0", "1", "2"):
        raise UserError(f"{path}: expected five landmarks, then gender (0, 1 or 2), race and age, one a line")
    return int(lines[5])


def read_box_file(path: Path) -> Box | None:
    """The authors' box, or None where there is no file."""
    if not path.exists():
        return None
    try:
        x0, y0, x1, y1 = map(float, path.read_text().split())
    except ValueError:
        raise UserError(f"{path}: expected four numbers x0 y0 x1 y1") from None
    return x0, y0, x1, y1
