"""CelebA-HQ as CelebAMask-HQ publishes it (Lee et al. 2020): aligned faces with 40 attributes, of which one is used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jaxface.data.records import Record
from jaxface.data.sources.base import Reading, Source, register_source
from jaxface.errors import UserError

TABLE, IMAGES = "CelebAMask-HQ-attribute-anno.txt", "CelebA-HQ-img"
MAPPING, IDENTITIES = "CelebA-HQ-to-CelebA-mapping.txt", "identity_CelebA.txt"
PUBLISHED = 30_000
"""Images of the whole set, numbered from 0."""
GENDER = {"1": 0, "-1": 1}
"""The attribute Male as our class of gender."""


@register_source("celeba_hq")
class CelebaHq(Source):
    """First line the number of images, second the attributes' names, then `0.jpg  -1 1 ...`.

    The last 2,000 of the 30,000 images test (`options.held_out`): the thesis's counts leave 28,000 to train and validate (Table 3.2) and
    its Figure 2.13 has a test set, though its Table 3.1 has none.
    Where CelebA's list of identities lies beside the published mapping to CelebA, nobody is in training and validation.
    """

    takes = ("held_out",)
    layout = f"{TABLE} and {IMAGES}/0.jpg; for the persons also {MAPPING} and CelebA's {IDENTITIES}"

    def records(self, folder: Path, options: Reading) -> Iterator[Record]:
        path, images = self.require(folder / TABLE), self.require(folder / IMAGES)
        persons = read_persons(folder)
        count, names, *lines = path.read_text(errors="backslashreplace").rstrip().splitlines() or ("", "")
        names = names.split()
        if not count.strip().isdigit() or "Male" not in names:
            raise UserError(
                f"{path}: expected the number of images in the first line and the attributes' names, Male among them, in the second"
            )
        if int(count) != len(lines):
            raise UserError(f"{path}: the first line says {count.strip()} images, {len(lines)} are listed")
        for number, line in enumerate(lines, 3):
            file, *values = line.split()
            if len(values) != len(names):
                raise UserError(f"{path}:{number}: {len(values)} attributes, expected {len(names)}")
            value = values[names.index("Male")]
            if value not in GENDER:
                raise UserError(f"{path}:{number}: Male is {value!r}, expected 1 or -1")
            split = "test" if Path(file).stem.isdigit() and int(Path(file).stem) >= PUBLISHED - options.held_out else "train"
            yield Record(file, split, images / Path(file).name, {"gender": GENDER[value]}, person=persons.get(Path(file).stem, ""))


def read_persons(folder: Path) -> dict[str, str]:
    """The person of each image's number, as far as both lists are there."""
    mapping, identities = folder / MAPPING, folder / IDENTITIES
    if not (mapping.exists() and identities.exists()):
        return {}
    person = dict(line.split()[:2] for line in identities.read_text().splitlines() if line.strip())
    rows = (line.split() for line in mapping.read_text().splitlines()[1:] if line.strip())  # idx, orig_idx, orig_file
    return {row[0]: f"celeba {person[row[2]]}" for row in rows if row[2] in person}
