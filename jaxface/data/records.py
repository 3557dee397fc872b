"""Prepared records: what `jaxface.prepare` writes and training reads.

A prepared folder holds ArrayRecord files with TensorFlow Datasets' description of them, `labels.npz` (every label of every split, so
that sampling reads no image), `hashes.npz` (to find pictures that are there twice), and `summary.json`. An example has `image` (encoded
bytes), `id`, `person`, `source`, and one integer per task, `MISSING` where it has none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from jaxface.data.images import Unreadable
from jaxface.data.tasks import MISSING
from jaxface.errors import UserError

LABELS = "labels.npz"
HASHES = "hashes.npz"
SUMMARY = "summary.json"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Record:
    """One face of a source, before preparation.

    Attributes:
      id: stable name within the source.
      split: train, validation or test.
      image: path of the image file, or its encoded bytes.
      labels: class of each task that the record carries.
      box: x0, y0, x1, y1 of the face in pixels, or None.
      person: name of the person where the source knows it, else ''.
      is_crop: whether an image without a box is a face crop already; otherwise the face is still to be found in it.
    """

    id: str
    split: str
    image: Path | bytes
    labels: Mapping[str, int] = field(default_factory=dict)
    box: tuple[float, float, float, float] | None = None
    person: str = ""
    is_crop: bool = True


def read_summary(folder: str | Path) -> dict[str, Any]:
    """The summary of a prepared folder. Raises UserError if it is none."""
    path = Path(folder) / SUMMARY
    if not Path(folder).is_dir():
        raise UserError(f"no folder {folder}: write it with `python -m jaxface.prepare SOURCE FOLDER --out {folder}`")
    if not path.is_file() or not (Path(folder) / LABELS).is_file():
        raise UserError(
            f"{folder} is not a prepared folder (no {SUMMARY}): write one with `python -m jaxface.prepare SOURCE FOLDER --out DIR`"
        )
    return json.loads(path.read_text())


def splits(folder: str | Path) -> tuple[str, ...]:
    """The splits that a prepared folder has."""
    return tuple(read_summary(folder)["splits"])


@lru_cache(maxsize=32)
def _labels(folder: str) -> dict[str, np.ndarray]:
    read_summary(folder)
    with np.load(Path(folder) / LABELS) as arrays:
        return dict(arrays)


def read_labels(folder: str | Path, split: str) -> dict[str, np.ndarray]:
    """The labels [N] int64 of every task that the folder knows, in the order of the records. Raises UserError if there is no such split."""
    if split not in splits(folder):
        raise UserError(f"{folder} has no split {split!r}; it has {', '.join(splits(folder))}")
    return {name.partition("/")[2]: values for name, values in _labels(str(folder)).items() if name.startswith(f"{split}/")}


def read_hashes(folder: str | Path) -> dict[str, np.ndarray]:
    """The perceptual hashes [N, 32] uint8 of each split's records, in order. Raises UserError if the folder has none."""
    read_summary(folder)
    if not (Path(folder) / HASHES).is_file():
        raise UserError(f"{folder} has no {HASHES}: prepare it again")
    with np.load(Path(folder) / HASHES) as arrays:
        return dict(arrays)


class Records:
    """Random access to the records of one split; can be sent to worker processes.

    `records[i]` is {"image": encoded bytes, "id": str, "person": str, "source": str, "labels": {task: int}}; it raises Unreadable where the
    file is damaged.
    """

    def __init__(self, folder: str | Path, split: str) -> None:
        import tensorflow_datasets as tfds

        self.folder, self.split = str(folder), split
        self.tasks = tuple(read_labels(folder, split))
        builder = tfds.builder_from_directory(self.folder)
        _check_files(builder.info.splits[split])
        self._examples = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        from tensorflow_datasets.proto import tf_example_pb2

        try:
            values = tf_example_pb2.Example.FromString(self._examples[int(index)]).features.feature
        except Exception as error:  # of the reader or of protobuf, which have no common kind
            reason = " ".join(str(error).split(";")[0].split())
            raise Unreadable(f"damaged in {self.folder}: {reason}") from None
        return {
            "image": values["image"].bytes_list.value[0],
            **{name: values[name].bytes_list.value[0].decode() for name in ("id", "person", "source")},
            "labels": {task: int(values[task].int64_list.value[0]) for task in self.tasks},
        }


def _check_files(split: Any) -> None:
    """Raises UserError if a file of the split (TensorFlow Datasets' description of it) is missing or has lost a part."""
    missing = [path for path in split.filepaths if not path.exists()]
    if missing:
        raise UserError(f"{missing[0]} is missing: copy the whole folder again, or prepare it again")
    size, written = sum(path.stat().length for path in split.filepaths), int(split.num_bytes)
    if size != written:
        raise UserError(f"{split.filepaths[0].parent}: {split.name} has {size} bytes, {written} were written: prepare it again")


def open_records(folder: str | Path, split: str) -> Records:
    """The records of a split. Raises UserError if the folder is not a prepared one or has no such split."""
    return Records(folder, split)


def label_counts(labels: Mapping[str, np.ndarray], classes: Mapping[str, int]) -> dict[str, list[int]]:
    """How many records each class of each task has."""
    return {task: np.bincount(values[values != MISSING], minlength=classes[task]).tolist() for task, values in labels.items()}
