"""What every data set gives: its records. A new one is a subclass of `Source` with two methods, registered under a word:

@register_source("my_faces")
class MyFaces(Source):
    def records(self, folder, options):
        yield Record(id="a.jpg", split="train", image=folder / "a.jpg", labels={"gender": 0})
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from jaxface.data.faces import face_bytes
from jaxface.data.images import Unreadable
from jaxface.data.records import SPLITS, Record
from jaxface.data.tasks import MISSING, TASKS
from jaxface.errors import UserError
from jaxface.progress import Track

VALIDATION_SHARE = 0.2
"""Part of the training records that validate (thesis, section 3.2)."""

Drop = tuple[str, str]
"""The id of a record that cannot be used, and why."""


class Source:
    """A data set on disk.

    Attributes:
      name: the word that `jaxface.prepare` takes.
      layout: what its folder must hold, for messages.
      splits_itself: whether its validation split is its own; otherwise a fifth of `train` is taken.
      margin: added around a face box on each side, as a share of its longer side.
    """

    name: ClassVar[str]
    layout: ClassVar[str] = ""
    splits_itself: ClassVar[bool] = False
    margin: ClassVar[float] = 0.2

    def records(self, folder: Path, options: dict[str, Any]) -> Iterable[Record]:
        """All records of the folder, in a fixed order. Raises UserError where it is not laid out as it should be."""
        raise NotImplementedError

    def require(self, path: Path) -> Path:
        """The path, if it exists. Raises UserError that says what the layout is."""
        if not path.exists():
            raise UserError(f"{path} is missing: {self.name} needs {self.layout}")
        return path


SOURCES: dict[str, Source] = {}


def register_source(name: str) -> Callable[[type[Source]], type[Source]]:
    """Decorator that makes a source known by its name."""

    def add(kind: type[Source]) -> type[Source]:
        kind.name = name
        SOURCES[name] = kind()
        return kind

    return add


def get_source(name: str) -> Source:
    """The source of that name. Raises UserError that lists the known ones."""
    if name not in SOURCES:
        raise UserError(f"no source {name!r}; known: {', '.join(sorted(SOURCES))}")
    return SOURCES[name]


def validates(record: Record) -> bool:
    """Whether a training record belongs to validation: by a hash of its person or id, so that new data moves no old record."""
    digest = hashlib.sha256((record.person or record.id).encode()).digest()
    return int.from_bytes(digest[:8], "big") < VALIDATION_SHARE * 2**64


class Faces(tfds.core.GeneratorBasedBuilder):
    """Writes faces as a TensorFlow Datasets data set of ArrayRecord files, without TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, source: Source, records: dict[str, list[Record]], data_dir: Path) -> None:
        self.source, self.records = source, records
        self.labels: dict[str, list[list[int]]] = {split: [] for split in records}
        self.dropped: list[Drop] = []
        self.tasks = tuple(TASKS)
        super().__init__(data_dir=str(data_dir), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"image": tfds.features.Image(shape=(None, None, 3)), **{k: tfds.features.Text() for k in ("id", "person", "source")}}
        features |= dict.fromkeys(self.tasks, np.int64)
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {split: self._generate_examples(split) for split in self.records}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        records = self.records[split]
        with Track(f"{self.source.name} {split}", len(records), unit="images") as track:
            for record, outcome in in_order(lambda record: self._prepare(record), records):
                track.advance()
                if isinstance(outcome, str):
                    self.dropped.append((record.id, outcome))
                    continue
                labels = [record.labels.get(task, MISSING) for task in self.tasks]
                key = len(self.labels[split])
                self.labels[split].append(labels)
                example = {"image": io.BytesIO(outcome), "id": record.id, "person": record.person, "source": self.source.name}
                yield key, example | dict(zip(self.tasks, labels, strict=True))

    def _prepare(self, record: Record) -> bytes | str:
        """The face's encoded bytes, or why there are none."""
        try:
            data = record.image if isinstance(record.image, bytes) else record.image.read_bytes()
            return face_bytes(data, record.box, self.source.margin)
        except Unreadable as error:
            return str(error)
        except OSError as error:
            return error.strerror or str(error)


def in_order(function: Callable[[Record], Any], items: Iterable[Record]) -> Iterator[tuple[Record, Any]]:
    """Each item with the function's result, in the items' order, computed in threads a little ahead."""
    workers = os.cpu_count() or 1
    items = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        ahead = [(item, pool.submit(function, item)) for item in islice(items, 16 * workers)]
        while ahead:
            item, future = ahead.pop(0)
            ahead.extend((item, pool.submit(function, item)) for item in islice(items, 1))
            yield item, future.result()


def sort_into_splits(source: Source, records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records by split. Raises UserError if there is none, or two with one id."""
    sorted_records: dict[str, list[Record]] = {split: [] for split in SPLITS}
    seen = set()
    for record in records:
        if record.id in seen:
            raise UserError(f"two records of {source.name} have the id {record.id}")
        seen.add(record.id)
        split = "validation" if record.split == "train" and not source.splits_itself and validates(record) else record.split
        sorted_records[split].append(record)
    if not seen:
        raise UserError(f"{source.name}: the folder holds no record; it needs {source.layout}")
    return {split: found for split, found in sorted_records.items() if found}
