"""What every data set gives: its records. A new one is a subclass of `Source` with one method, registered under a word:

@register_source("my_faces")
class MyFaces(Source):
    def records(self, folder, options):
        yield Record(id="a.jpg", split="train", image=folder / "a.jpg", labels={"gender": 0})
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from jaxface.data.records import SPLITS, Record
from jaxface.data.tasks import TASKS, Task
from jaxface.errors import UserError, printable
from jaxface.ranges import Items, Name, Range, Where, Word, ranged
from jaxface.registry import Registry

VALIDATION_SHARE = 0.2
"""Part of the training records that validate (thesis, section 2.7)."""


@dataclass(frozen=True)
class Skipped:
    """An entry of a source that is no record, and why."""

    id: str
    reason: str


UNPREFIXED = tyro.conf.arg(prefix_name=False)


@ranged("read.")
class Reading:
    """How a source understands what it finds.

    Attributes:
      straddling: a range of years over several age groups is refused, counted by its middle, or left out as missing.
      images: which of a set's images, where it has both: "originals" or the authors' "crops"; "auto" takes UTKFace's originals (the thesis
        counts more of them than there are crops) and RAF-DB's aligned crops.
      unsure: training faces whose gender RAF-DB's annotators were unsure of are left out, as the thesis's counts say, or kept without one.
      held_out: how many images at the end of CelebA-HQ test and do not train: 2,000 by the thesis's counts (Table 3.2), 0 by its Table 3.1.
      ages: a table (CSV or Parquet) of ages per image, for VGGFace2.
      path_column: in that table, the image's path.
      age_column: in that table, the age in years.
      tasks_file: a TOML file of one's own tasks; without it those of faces, or what the columns show.
      columns: of a table of one's own those to read as tasks, by their names; path=NAME, split=NAME, person=NAME say what others are.
      label: what the task of a source with one label is called: folders and coco.
      per: of COCO's pictures the categories of each as several labels, or each box as a picture of its category.
    """

    straddling: Literal["refuse", "middle", "missing"] = "refuse"
    images: Literal["auto", "originals", "crops"] = "auto"
    unsure: Literal["drop", "keep"] = "drop"
    held_out: Annotated[int, Range(0, 30_000)] = 2000
    ages: Where | None = None
    path_column: Name = "path"
    age_column: Name = "age"
    tasks_file: Annotated[Where | None, UNPREFIXED] = None
    columns: Annotated[tuple[Name, ...], Items(once=True), UNPREFIXED] = ()
    label: Annotated[str, Word(r"\w[\w-]{0,99}", "a name of letters, digits, _ and -"), UNPREFIXED] = "label"
    per: Annotated[Literal["image", "object"], UNPREFIXED] = "image"


class Source:
    """A data set on disk.

    Attributes:
      name: as `jaxface.prepare` takes it.
      layout: what its folder must hold, for messages.
      margin: added around a face box on each side, as a share of its longer side.
      takes: the fields of `Reading` that it looks at; others are refused where they are not as usual.
      on_disk: whether there are files that may change; otherwise the options say all.
    """

    name: ClassVar[str]
    layout: ClassVar[str] = ""
    margin: ClassVar[float] = 0.2
    takes: ClassVar[tuple[str, ...]] = ("straddling", "images", "unsure", "held_out", "ages", "path_column", "age_column", "label", "per")
    on_disk: ClassVar[bool] = True

    def records(self, folder: Path, options: Any) -> Iterable[Record | Skipped]:
        """All records of the folder, in a fixed order. Raises UserError where it is not laid out as it should be.

        Args:
          options: a `Reading`.
        """
        raise NotImplementedError

    def read(self, folder: Path, options: Any) -> tuple[tuple[Task, ...], Iterable[Record | Skipped]]:
        """The tasks that its records may have labels of, and the records. Raises UserError as `records`."""
        return tuple(TASKS.values()), self.records(folder, options)

    def require_taken(self, options: Any) -> None:
        """Raises UserError for an option that is not as usual and that the source does not look at."""
        for name in Reading.__dataclass_fields__ if isinstance(options, Reading) else ():
            if name not in self.takes and getattr(options, name) != getattr(Reading, name):
                takes = ", ".join(self.takes) or "no options"
                raise UserError(f"{name} {getattr(options, name)}: source {self.name} does not take it; it takes {takes}")

    def check(self, folder: Path) -> None:
        """Raises UserError if there is nothing in the folder."""
        if not folder.exists():
            raise UserError(f"no folder {folder}; expected {self.layout}")
        if folder.is_dir() and not any(folder.iterdir()):
            raise UserError(f"{folder} is empty; expected {self.layout}")

    def require(self, path: Path) -> Path:
        """The path, if it exists. Raises UserError that says what the layout is."""
        if not path.exists():
            raise UserError(f"{path} is missing: {self.name} needs {self.layout}")
        return path


SOURCES: Registry[Source] = Registry("source")
get_source = SOURCES.get


def register_source(name: str) -> Callable[[type[Source]], type[Source]]:
    """Decorator that makes a source known by its name."""

    def add(kind: type[Source]) -> type[Source]:
        kind.name = name
        SOURCES.add(name, kind())
        return kind

    return add


def validates(record: Record) -> bool:
    """Whether a training record belongs to validation.

    A hash of its person (else of its photo, so that the faces of one photo stay together) says so: new data moves no old record, and every
    class gives its fifth, give or take what chance does (of the 281 faces of fear in RAF-DB 56 +- 7).
    """
    digest = hashlib.sha256((record.person or record.id.partition("@")[0]).encode()).digest()
    return int.from_bytes(digest[:8], "big") < VALIDATION_SHARE * 2**64


def sort_into_splits(source: Source, found: Iterable[Record | Skipped]) -> tuple[dict[str, list[Record]], list[Skipped]]:
    """The records by split, and what is none. A split of the source's own is kept: only a set without validation gives a fifth for it.

    Raises UserError if there is no record, or two with one id.
    """
    by_split: dict[str, list[Record]] = {split: [] for split in SPLITS}
    skipped: list[Skipped] = []
    seen = set()
    for entry in found:
        entry = replace(entry, id=printable(entry.id))
        if isinstance(entry, Skipped):
            skipped.append(entry)
            continue
        if entry.id in seen:
            raise UserError(f"two records of {source.name} have the id {entry.id}")
        seen.add(entry.id)
        by_split[entry.split].append(entry)
    if not seen:
        example = f" ({skipped[0].id}: {skipped[0].reason})" if skipped else ""
        raise UserError(f"{source.name}: the folder holds no record{example}; it needs {source.layout}")
    if not by_split["validation"]:
        train = by_split["train"]
        by_split["train"] = [record for record in train if not validates(record)]
        by_split["validation"] = [record for record in train if validates(record)]
    return {split: records for split, records in by_split.items() if records}, skipped
