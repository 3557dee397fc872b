"""From a data set on disk to a prepared folder: checked, cropped, written aside and renamed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxface.data.records import LABELS, SUMMARY, label_counts, read_summary
from jaxface.data.tasks import TASKS
from jaxface.errors import UserError


def prepare(source_name: str, folder: Path, out: Path, *, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """Writes the records of a data set into `out` and returns the summary.

    Nothing is done where `out` holds the same set already. What cannot be read is left out, counted and listed in `summary.json`.

    Raises UserError if the folder is not laid out as the source needs it, holds nothing usable, or `out` holds something else.
    """
    from jaxface.data.sources import SOURCES
    from jaxface.data.sources.base import Faces, get_source, sort_into_splits

    source = get_source(source_name)
    settings = {"source": source.name, "folder": str(folder), "options": options or {}}
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        return _existing(out, settings)
    if source.name != "synthetic":
        _check_folder(folder, SOURCES[source.name].layout)
    records = sort_into_splits(source, source.records(folder, options or {}))
    aside = out.parent / f".{out.name}.{os.getpid()}"
    try:
        builder = Faces(source=source, records=records, data_dir=aside)
        _write(builder, folder)
        labels = _labels(builder)
        summary = {**settings, **_summary(builder, labels)}
        prepared = Path(builder.data_dir)
        np.savez(prepared / LABELS, **labels)
        (prepared / SUMMARY).write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists():
            out.rmdir()
        prepared.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return summary


def _write(builder: Any, folder: Path) -> None:
    """Writes all splits. Raises UserError if nothing of one of them can be used."""
    try:
        with _quiet():
            builder.download_and_prepare()
    except AssertionError:  # how the writer says that a split came out empty
        split = next((split for split, rows in builder.labels.items() if not rows and builder.dropped), None)
        if split is None:
            raise
        name, reason = builder.dropped[-1]
        raise UserError(f"{folder}: none of its {len(builder.records[split])} {split} images can be used ({name}: {reason})") from None


def _existing(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    summary = read_summary(out)
    different = [name for name, value in settings.items() if summary.get(name) != json.loads(json.dumps(value))]
    if different:
        raise UserError(f"{out} holds another prepared set (different: {', '.join(different)}): choose another --out, or remove it")
    return summary


def _check_folder(folder: Path, layout: str) -> None:
    if not folder.exists():
        raise UserError(f"no folder {folder}; expected {layout}")
    if folder.is_dir() and not any(folder.iterdir()):
        raise UserError(f"{folder} is empty; expected {layout}")


def _labels(builder: Any) -> dict[str, np.ndarray]:
    """`split/task` -> labels [N], for the tasks that some record carries, in the order of the records."""
    arrays = {split: np.asarray(rows, np.int64).reshape(-1, len(builder.tasks)) for split, rows in builder.labels.items()}
    return {f"{split}/{task}": rows[:, i] for split, rows in arrays.items() for i, task in enumerate(builder.tasks)}


def _summary(builder: Any, labels: dict[str, np.ndarray]) -> dict[str, Any]:
    classes = {task: TASKS[task].num_classes for task in builder.tasks}
    splits = {}
    for split, rows in builder.labels.items():
        own = {task: labels[f"{split}/{task}"] for task in builder.tasks}
        splits[split] = {"records": len(rows), "labels": label_counts(own, classes)}
    return {
        "classes": {task: TASKS[task].classes for task in builder.tasks},
        "splits": splits,
        "dropped": {
            "count": len(builder.dropped),
            "reasons": dict(Counter(reason for _, reason in builder.dropped).most_common()),
            "files": [{"id": name, "reason": reason} for name, reason in builder.dropped],
        },
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TensorFlow Datasets' own progress bars and announcements off the terminal, whose progress is ours."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
