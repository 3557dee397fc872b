"""The unit of work of `jaxface.prepare`: a few hundred records of one split become one file, the same whoever writes it and when.

A shard's file is there or not: a run that was killed goes on with the shards that are missing.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
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
from jaxface.data.tasks import BUILT_IN, Task
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
      tasks: whose labels are written.
    """

    stem: Path
    records: tuple[Record, ...]
    source: str
    margin: float
    cropping: Cropping
    tasks: tuple[Task, ...]

    @property
    def file(self) -> Path:
        return self.stem.with_name(f"{self.stem.name}.array_record")

    @property
    def done(self) -> Path:
        """Written last: what came out, as JSON."""
        return self.stem.with_name(f"{self.stem.name}.json")

    @cached_property
    def outcome(self) -> dict[str, Any]:
        """Of the N records written `labels` [N, tasks] (null where there is none), `hashes` (hexadecimal) and `kept` (positions); of others
        `dropped` (id, reason); `damaged` (id, reason) of those that were kept."""
        return json.loads(self.done.read_text())


def make_shards(
    folder: Path,
    split: str,
    records: list[Record],
    source: str,
    margin: float,
    cropping: Cropping,
    tasks: tuple[Task, ...],
    content: bool = False,
) -> list[Shard]:
    """The shards of a split: how many depends on the number of records alone, never on the machine.

    Args:
      tasks: whose labels are written.
      content: know images by a hash of their content, not by size and time.
    """
    described = [task if task == BUILT_IN.get(task.name) else (task, task.kind, task.unit) for task in tasks]
    size = min(1024, max(64, -(-len(records) // 64)))
    shards = []
    for index, start in enumerate(range(0, len(records), size)):
        part = tuple(records[start : start + size])
        images = [(replace(record, image=b""), *_version(record.image, content)) for record in part]
        identity = repr((source, margin, cropping, described, images))
        name = f"{split}-{index:05d}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        shards.append(Shard(folder / name, part, source, margin, cropping, tasks))
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
            labels = [record.labels.get(task.name) for task in shard.tasks]
            write(serialize(data, record, shard.source, shard.tasks, labels))
            outcome["labels"].append(labels)
            outcome["hashes"].append(fingerprint(image).tobytes().hex())
            outcome["kept"].append(position)
            outcome["damaged"] += [(record.id, damage)] if damage else []
    write_json(shard.done, outcome)


@lru_cache(maxsize=1)
def features(tasks: tuple[Task, ...]) -> Any:
    """What an example holds, for TensorFlow Datasets: the labels of the tasks as their kinds keep them."""
    import tensorflow_datasets as tfds

    fields = {"image": tfds.features.Image(shape=(None, None, 3)), **{name: tfds.features.Text() for name in ("id", "person", "source")}}
    labels = {task.name: task.of.array(task, [None]) for task in tasks}
    kept = {name: np.float64 if blank.dtype.kind == "f" else np.int64 for name, blank in labels.items()}
    shaped = {name: tfds.features.Tensor(shape=labels[name].shape[1:], dtype=kind) for name, kind in kept.items() if labels[name].ndim > 1}
    return tfds.features.FeaturesDict(fields | kept | shaped)


def serialize(image: bytes, record: Record, source: str, tasks: tuple[Task, ...], labels: Sequence[Any]) -> bytes:
    """An example as TensorFlow Datasets writes it, the same bytes every time."""
    example = {"image": io.BytesIO(image), "id": record.id, "person": record.person, "source": source}
    kept = {task.name: task.of.array(task, [label])[0] for task, label in zip(tasks, labels, strict=True)}
    example |= {name: label.astype(np.int64) if label.ndim else label for name, label in kept.items()}
    return _serializer(tasks).get_tf_example(features(tasks).encode_example(example)).SerializeToString(deterministic=True)


@lru_cache(maxsize=1)
def _serializer(tasks: tuple[Task, ...]) -> Any:
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    return ExampleSerializer(features(tasks).get_serialized_info())
