"""Prepared records: what `jaxface.prepare` writes and training reads.

A prepared folder holds ArrayRecord files with TensorFlow Datasets' description of them, `labels.npz` (every label of every split, so
that sampling reads no image), `hashes.npz` (to find pictures that are there twice), `summary.json`, and `digests.json`, which says whether
all of them are what was written. TensorFlow Datasets reads the folder; we read the records alone, since its description of the features
names Python classes, which nobody who opens a folder of someone else's wants to have imported. An example has `image` (encoded
bytes), `id`, `person`, `source`, and the label of each task, as its kind keeps it (see `jaxface.data.kinds`), missing where it has none.
"""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from jaxface.data.images import Unreadable
from jaxface.data.task_files import task_from, task_to
from jaxface.data.tasks import TASKS, Task
from jaxface.digests import check_digest, combined, file_digest
from jaxface.errors import UserError
from jaxface.files import read_object

LABELS = "labels.npz"
HASHES = "hashes.npz"
SUMMARY = "summary.json"
TASKS_FILE = "tasks.toml"
"""The tasks, to be read and changed by people; programs read the summary."""
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
      labels: of each task that the record carries the class, or what its kind has in place of one.
      box: x0, y0, x1, y1 of the face in pixels, or None.
      person: name of the person where the source knows it, else ''.
      is_crop: whether an image without a box is a face crop already; otherwise the face is still to be found in it.
    """

    id: str
    split: str
    image: Path | bytes
    labels: Mapping[str, Any] = field(default_factory=dict)
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
    """The labels [N, ...] of every task that the folder knows (see `jaxface.data.kinds`), in the order of the records.

    Raises UserError if there is no such split.
    """
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

    `records[i]` is {"image": encoded bytes, "id": str, "person": str, "source": str, "labels": {task: label}}; it raises Unreadable where
    the file is damaged.
    """

    def __init__(self, folder: str | Path, split: str) -> None:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.folder, self.split = str(folder), split
        self.labels = labels = read_labels(folder, split)
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
                "labels": {task: labels[int(index)] for task, labels in self.labels.items()},
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


def set_tasks(folder: str | Path) -> dict[str, Task]:
    """The tasks that a prepared folder has labels of, by name. Raises UserError for one that is none, or a task described wrongly."""
    summary = read_summary(folder)
    try:
        described = summary["tasks"] if "tasks" in summary else {name: _of_old(name, names) for name, names in summary["classes"].items()}
        found = {name: task_from(name, value) for name, value in described.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{Path(folder) / SUMMARY}: {error}") from None
    return found


def _of_old(name: str, classes: list[str]) -> dict[str, Any]:
    """A task of a set from before they were described: a known one, or its classes."""
    same = name in TASKS and list(TASKS[name].classes) == classes
    return task_to(TASKS[name]) if same else {"classes": classes}


def joined_tasks(folders: Sequence[str | Path]) -> dict[str, Task]:
    """The tasks of several prepared folders. Raises UserError where two of them have different ones of a name."""
    found: dict[str, tuple[Task, str | Path]] = {}
    for folder in folders:
        for name, task in set_tasks(folder).items():
            first, where = found.setdefault(name, (task, folder))
            if first != task:
                what = "other classes" if first.classes != task.classes else "another kind or unit"
                raise UserError(f"{where} and {folder} both have a task {name}, of {what}: prepare them with one --tasks-file")
    return {name: task for name, (task, _) in found.items()}


def label_counts(labels: Mapping[str, np.ndarray], tasks: Mapping[str, Task]) -> dict[str, list[int]]:
    """How many records each class of each task has; of a number without steps how many records carry it."""
    return {name: tasks[name].of.counts(tasks[name], values) for name, values in labels.items()}
