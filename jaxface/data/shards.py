"""The unit of work of `jaxface.prepare`: a few hundred records of one split become one file, the same whoever writes it and when.

A shard's file is there or not: a run that was killed goes on with the shards that are missing.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from jaxface.data.cropping import Cropping, cut_face
from jaxface.data.duplicates import fingerprint
from jaxface.data.images import Unreadable
from jaxface.data.records import Record
from jaxface.data.tasks import MISSING, TASKS
from jaxface.digests import stamp_of
from jaxface.errors import UserError
from jaxface.files import aside, write_json

WRITER = "group_size:1"
"""One record a group: any record can be read without another."""


@dataclass(frozen=True)
class Shard:
    """Records that go into one file.

    Attributes:
      stem: the file's path without its suffix; its name holds a hash of all that decides its content.
      records: of one split, in order.
      source: the data set's name.
      margin: the source's own.
    """

    stem: Path
    records: tuple[Record, ...]
    source: str
    margin: float
    cropping: Cropping

    @property
    def file(self) -> Path:
        return self.stem.with_name(f"{self.stem.name}.array_record")

    @property
    def done(self) -> Path:
        """Written last: what came out, as JSON."""
        return self.stem.with_name(f"{self.stem.name}.json")

    @cached_property
    def outcome(self) -> dict[str, Any]:
        """Of the N records written `labels` [N, tasks], `hashes` (hexadecimal) and `kept` (positions); of others `dropped` (id, reason);
        `damaged` (id, reason) of those that were kept."""
        return json.loads(self.done.read_text())


def make_shards(
    folder: Path, split: str, records: list[Record], source: str, margin: float, cropping: Cropping, content: bool = False
) -> list[Shard]:
    """The shards of a split: how many depends on the number of records alone, never on the machine.

    Args:
      content: know images by a hash of their content, not by size and time.
    """
    tasks = [*TASKS.values()]
    size = min(1024, max(64, -(-len(records) // 64)))
    shards = []
    for index, start in enumerate(range(0, len(records), size)):
        part = tuple(records[start : start + size])
        images = [(replace(record, image=b""), *_version(record.image, content)) for record in part]
        identity = repr((source, margin, cropping, tasks, images))
        name = f"{split}-{index:05d}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        shards.append(Shard(folder / name, part, source, margin, cropping))
    return shards


def _version(image: Path | bytes, content: bool) -> tuple[str | int, ...]:
    """Tells whether an image is the one that it was."""
    return (hashlib.sha256(image).hexdigest(),) if isinstance(image, bytes) else stamp_of(image, content)


@contextmanager
def record_writer(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Writes an ArrayRecord file, whole or not at all. Raises UserError if it cannot be written."""
    from array_record.python.array_record_module import ArrayRecordWriter

    with aside(path) as temporary:
        try:
            writer = ArrayRecordWriter(str(temporary), WRITER)
            yield writer.write
            writer.close()
        except RuntimeError as error:  # as which its library tells of a full disk
            raise UserError(f"{path}: cannot be written: {' '.join(str(error).partition(';')[0].split())}") from None


def write_shard(shard: Shard) -> None:
    """Writes the shard's file and what came out of it, unless they are there."""
    if shard.done.exists():
        return
    outcome: dict[str, Any] = {"labels": [], "hashes": [], "kept": [], "dropped": [], "damaged": []}
    with record_writer(shard.file) as write:
        for position, record in enumerate(shard.records):
            try:
                data, image, damage = cut_face(record, shard.cropping, shard.margin)
            except Unreadable as error:
                outcome["dropped"].append((record.id, str(error)))
                continue
            labels = {task: record.labels.get(task, MISSING) for task in TASKS}
            write(serialize(data, record, shard.source, labels))
            outcome["labels"].append(list(labels.values()))
            outcome["hashes"].append(fingerprint(image).tobytes().hex())
            outcome["kept"].append(position)
            outcome["damaged"] += [(record.id, damage)] if damage else []
    write_json(shard.done, outcome)


def features() -> Any:
    """What an example holds, for TensorFlow Datasets: labels of the tasks that are known by now."""
    return _features(tuple(TASKS))


@lru_cache(maxsize=1)
def _features(tasks: tuple[str, ...]) -> Any:
    import tensorflow_datasets as tfds

    fields = {"image": tfds.features.Image(shape=(None, None, 3)), **{name: tfds.features.Text() for name in ("id", "person", "source")}}
    return tfds.features.FeaturesDict(fields | dict.fromkeys(tasks, np.int64))


def serialize(image: bytes, record: Record, source: str, labels: dict[str, int]) -> bytes:
    """An example as TensorFlow Datasets writes it, the same bytes every time."""
    example = {"image": io.BytesIO(image), "id": record.id, "person": record.person, "source": source} | labels
    return _serializer(tuple(TASKS)).get_tf_example(features().encode_example(example)).SerializeToString(deterministic=True)


@lru_cache(maxsize=1)
def _serializer(tasks: tuple[str, ...]) -> Any:
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    return ExampleSerializer(_features(tasks).get_serialized_info())
