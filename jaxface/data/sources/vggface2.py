"""VGGFace2 (Cao et al. 2018), its test people: gender per person, ages per image from a table of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jaxface.data.cells import read_age, read_label
from jaxface.data.faces import Box
from jaxface.data.records import Record
from jaxface.data.sources.base import Reading, Skipped, Source, register_source
from jaxface.data.tables import rows
from jaxface.errors import UserError, printable

TABLE, BOXES = "identity_meta.csv", "bb_landmark/loose_bb_test.csv"


@register_source("vggface2")
class VggFace2(Source):
    """`test/n000001/0001_01.jpg`, all for testing; the authors' boxes where `bb_landmark` is there, else a detector finds the face."""

    takes = ("ages", "path_column", "age_column", "straddling")
    layout = f"{TABLE} (Class_ID, Name, Sample_Num, Flag, Gender) and the images test/n000001/0001_01.jpg"

    def records(self, folder: Path, options: Reading) -> Iterator[Record | Skipped]:
        test = self.require(folder / "test")
        genders = read_genders(self.require(folder / TABLE))
        boxes = read_boxes(folder / BOXES) if (folder / BOXES).exists() else {}
        ages = read_ages(options) if options.ages else {}
        for person in sorted(path for path in test.iterdir() if path.is_dir()):
            for image in sorted(person.glob("*.jpg")):
                name = f"{person.name}/{image.stem}"
                if person.name not in genders:
                    yield Skipped(printable(name), f"the person is not in {TABLE}")
                    continue
                labels = {"gender": genders[person.name]} | ages.get(name, {})
                yield Record(f"{name}.jpg", "test", image, labels, boxes.get(name), person.name, is_crop=False)


def read_genders(path: Path) -> dict[str, int]:
    """The gender of each person; blanks follow the commas in the published file."""
    table = rows(path, ("Class_ID", "Gender"), ignored=("Name", "Sample_Num", "Flag"))
    return {row["Class_ID"]: read_label("gender", row.get("Gender", ""), where) for where, row in table}


def read_boxes(path: Path) -> dict[str, Box]:
    """The authors' box of each image, by `n000001/0001_01`: the published file gives left, top, width, height."""
    found = {}
    for where, row in rows(path, ("NAME_ID", "X", "Y", "W", "H")):
        try:
            x, y, width, height = (float(row[name]) for name in ("X", "Y", "W", "H"))
        except (KeyError, ValueError) as error:
            raise UserError(f"{where}: the face box needs four numbers X, Y, W, H ({error})") from None
        found[row["NAME_ID"]] = (x, y, x + width, y + height)
    return found


def read_ages(options: Reading) -> dict[str, dict[str, int]]:
    """The labels of age of each image, by `n000001/0001_01`, from the user's table."""
    if options.ages is None or not options.ages.is_file():
        raise UserError(f"--read.ages {options.ages}: no such file")
    found = {}
    for where, row in rows(options.ages, (options.path_column, options.age_column)):
        if options.path_column in row and options.age_column in row:
            path = Path(row[options.path_column])
            found[f"{path.parent.name}/{path.stem}"] = read_age(row[options.age_column], where, options.straddling)
    return found
