"""Prepared records: what `jaxface.prepare` writes and training reads.

A prepared folder holds ArrayRecord files with TensorFlow Datasets' description of them, `labels.npz` (every label of every split, so
that sampling reads no image), `hashes.npz` (to find pictures that are there twice), `summary.json`, and `digests.json`, which says whether
all of them are what was written. TensorFlow Datasets reads the folder; we read the records alone, since its description of the features
names Python classes, which nobody who opens a folder of someone else's wants to have imported. An example has `image` (encoded
bytes), `id`, `person`, `source`, and one integer per task, `MISSING` where it has none.
"""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from jaxface.data.images import Unreadable
from jaxface.data.tasks import MISSING
from jaxface.digests import check_digest, combined, file_digest
from jaxface.errors import UserError
from jaxface.files import read_object

LABELS = "labels.npz"
HASHES = "hashes.npz"
SUMMARY = "summary.json"
DESCRIPTION = "dataset_info.json"
SPLITS = ("train", "validation", "test")
AGAIN = ": copy the whole folder again, or prepare it again"
"""What to do about a file that is not what was written."""

_IMPORTING = threading.Lock()


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
    check_digest(path)
    try:
        summary = read_object(path, AGAIN)
        return {**summary, "splits": dict(summary["splits"])}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: not a summary of prepared records ({error}){AGAIN}") from None


def splits(folder: str | Path) -> tuple[str, ...]:
    """The splits that a prepared folder has."""
    return tuple(read_summary(folder)["splits"])


def _labels(folder: str) -> dict[str, np.ndarray]:
    read_summary(folder)
    stat = (Path(folder) / LABELS).stat()
    return _cached_labels(folder, stat.st_ino, stat.st_mtime_ns)


@lru_cache(maxsize=32)
def _cached_labels(folder: str, *version: int) -> dict[str, np.ndarray]:
    """The labels of a folder as it is: it may be prepared again."""
    return _arrays(Path(folder) / LABELS)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """What an .npz file holds. Raises UserError if it is damaged."""
    check_digest(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read ({error}){AGAIN}") from None


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
    return _arrays(Path(folder) / HASHES)


class Records:
    """Random access to the records of one split; can be sent to worker processes.

    `records[i]` is {"image": encoded bytes, "id": str, "person": str, "source": str, "labels": {task: int}}; it raises Unreadable where the
    file is damaged.
    """

    def __init__(self, folder: str | Path, split: str) -> None:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.folder, self.split = str(folder), split
        labels = read_labels(folder, split)
        self.tasks = tuple(labels)
        files = record_files(folder, split)
        try:
            self._examples = ArrayRecordDataSource([str(path) for path in files])
        except Exception as error:  # of the reader's own kinds
            raise UserError(f"{folder}: {split} cannot be read ({' '.join(str(error).split())[:200]}): copy the folder again") from None
        expected = len(next(iter(labels.values()), ()))
        if len(self._examples) != expected:
            raise UserError(f"{folder}: {split} has {len(self._examples)} records and {expected} labels: prepare it again")

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        kind = _example_kind()
        try:
            values = kind.FromString(self._examples[int(index)]).features.feature
            return {
                "image": values["image"].bytes_list.value[0],
                **{name: values[name].bytes_list.value[0].decode() for name in ("id", "person", "source")},
                "labels": {task: int(values[task].int64_list.value[0]) for task in self.tasks},
            }
        except Exception as error:  # of the reader or of protobuf, which have no common kind
            reason = " ".join(str(error).split(";")[0].split())
            raise Unreadable(f"damaged in {self.folder}: {reason}") from None


def _example_kind() -> Any:
    """The message that an example is, generated by protobuf.

    One thread at a time imports it: a second one that comes upon TensorFlow Datasets' lazy modules halfway finds some missing, or both wait
    for each other for ever.
    """
    with _IMPORTING:
        from tensorflow_datasets.proto import tf_example_pb2

        messages: Any = tf_example_pb2  # lazy, too, and its names are known to no checker
        return messages.Example


def record_files(folder: str | Path, split: str) -> list[Path]:
    """The ArrayRecord files of a split, in order. Raises UserError if one is missing or has lost a part."""
    description = Path(folder) / DESCRIPTION
    for path in (description, description.with_name("features.json")):  # the latter for others' readers: see above
        check_digest(path)
    try:
        (entry,) = (entry for entry in read_object(description, AGAIN)["splits"] if entry["name"] == split)
        count, written = len(entry["shardLengths"]), int(entry["numBytes"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{description}: cannot be read ({error}){AGAIN}") from None
    files = [Path(folder) / f"faces-{split}.array_record-{index:05d}-of-{count:05d}" for index in range(count)]
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]} is missing{AGAIN}")
    size = sum(path.stat().st_size for path in files)
    if size != written:
        raise UserError(f"{folder}: {split} has {size} bytes, {written} were written: prepare it again")
    return files


def set_digest(folder: str | Path) -> str:
    """One SHA-256 over all labels and records of a prepared folder: which data it holds, wherever it lies. It reads every file."""
    files = [Path(folder) / LABELS, *(path for split in splits(folder) for path in record_files(folder, split))]
    return combined({path.name: file_digest(path) for path in files})


def open_records(folder: str | Path, split: str) -> Records:
    """The records of a split. Raises UserError if the folder is not a prepared one or has no such split."""
    return Records(folder, split)


def label_counts(labels: Mapping[str, np.ndarray], classes: Mapping[str, int]) -> dict[str, list[int]]:
    """How many records each class of each task has."""
    return {task: np.bincount(values[values != MISSING], minlength=classes[task]).tolist() for task, values in labels.items()}
