"""Batches for training and evaluation, read with grain: sharded by process, resumable at any batch, the same for any worker count."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from jaxface.data.augment import Augment, apply, draw, resize
from jaxface.data.images import Unreadable, decode
from jaxface.data.records import open_records, read_labels, splits
from jaxface.data.sampling import make_order
from jaxface.data.tasks import MISSING
from jaxface.errors import UserError

log = logging.getLogger(__name__)

TRIES = 100
"""Records tried in place of an unreadable one before training gives up."""


def count_records(folders: Sequence[str], split: str, *, missing_ok: bool = False) -> int:
    """The number of records of a split over all folders. Raises UserError if none has it, unless `missing_ok`."""
    counts = [len(next(iter(read_labels(folder, split).values()))) for folder in folders if split in splits(folder)]
    if not counts and not missing_ok:
        raise UserError(f"no split {split!r} in {', '.join(map(str, folders))}")
    return sum(counts)


class Joined:
    """The records of one split of several folders, one after another, with the labels of the asked tasks."""

    def __init__(self, folders: Sequence[str], split: str, tasks: Sequence[str]) -> None:
        self.tasks = tuple(tasks)
        self.parts = [open_records(folder, split) for folder in folders if split in splits(folder)]
        if not self.parts:
            raise UserError(f"no split {split!r} in {', '.join(map(str, folders))}")
        self.starts = np.cumsum([0, *map(len, self.parts)])
        self.labels = {
            task: np.concatenate([read_labels(p.folder, split).get(task, np.full(len(p), MISSING)) for p in self.parts]) for task in tasks
        }

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        record = self.parts[part][index - int(self.starts[part])]
        return record | {"labels": {task: record["labels"].get(task, MISSING) for task in self.tasks}}


class TrainExamples:
    """The endless stream of training examples as random access: example k is a function of (seed, k)."""

    def __init__(self, records: Joined, *, image_size: int, seed: int, augment: Augment | None, sampling: str) -> None:
        self.records, self.image_size, self.seed, self.augment = records, image_size, seed, augment
        self.order = make_order(sampling, records.labels, len(records), seed)

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, position: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, 1, position))
        for attempt in range(TRIES):
            # the record that stands in for an unreadable one is drawn from the example's own numbers: no state between examples
            index = self.order[position] if attempt == 0 else int(rng.integers(len(self.records)))
            record = self.records[index]
            try:
                image = decode(record["image"])
            except Unreadable as error:
                log.warning("record %s left out: %s", record["id"], error)
                continue
            image = resize(image, self.image_size) if self.augment is None else apply(image, draw(self.augment, rng), self.image_size)
            return {"image": image, "labels": record["labels"], "id": record["id"]}
        raise UserError(f"{TRIES} records in a row cannot be read; the last: {record['id']}")


class EvalExamples:
    """Every record once, in order; unreadable ones and those past the end are marked as not valid."""

    def __init__(self, records: Joined, *, image_size: int, length: int) -> None:
        self.records, self.image_size, self.length = records, image_size, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[min(index, len(self.records) - 1)]
        valid = index < len(self.records)
        try:
            image = resize(decode(record["image"]), self.image_size)
        except Unreadable as error:
            log.warning("record %s left out: %s", record["id"], error)
            image, valid = np.zeros((self.image_size, self.image_size, 3), np.uint8), False
        return {"image": image, "valid": valid, **{name: record[name] for name in ("labels", "id", "source", "person")}}


def collate(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Examples -> one batch: images uint8 [B, H, W, 3], labels int32 [B] per task, names as object arrays [B]."""
    batch = {name: np.array([example[name] for example in examples], object) for name in ("id", "source", "person") if name in examples[0]}
    batch["image"] = np.stack([example["image"] for example in examples])
    batch["labels"] = {task: np.array([e["labels"][task] for e in examples], np.int32) for task in examples[0]["labels"]}
    if "valid" in examples[0]:
        batch["valid"] = np.array([example["valid"] for example in examples])
    return batch


def train_batches(
    folders: Sequence[str],
    tasks: Sequence[str],
    *,
    image_size: int,
    batch_size: int,
    seed: int,
    augment: Augment | None,
    sampling: str = "balanced",
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    start: int = 0,
) -> grain.DatasetIterator:
    """An endless iterator of training batches, with `get_state()` and `set_state(state)` (JSON) for exact resume.

    Args:
      folders: prepared folders, read as one.
      batch_size: of this process; process p of n takes every n-th example, so that together they take the same ones as one process.
      augment: random changes, or None.
      sampling: "shuffle" or "balanced".
      workers: processes that decode and augment; 0 does it in threads.
      start: batches that are left out at the beginning: a run that goes on after so many steps, on any number of processes.
    """
    examples = TrainExamples(Joined(folders, "train", tasks), image_size=image_size, seed=seed, augment=augment, sampling=sampling)
    data = grain.MapDataset.source(examples)[process_index::process_count].batch(batch_size, batch_fn=collate)
    return iter(_read(data[start:], workers))


def eval_batches(
    folders: Sequence[str],
    split: str,
    tasks: Sequence[str],
    *,
    image_size: int,
    batch_size: int,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, Any]]:
    """The records of a split, each once and in order, in full batches: rows with `valid` False fill the last one up."""
    records = Joined(folders, split, tasks)
    length = -(-len(records) // (batch_size * process_count)) * batch_size * process_count
    examples = EvalExamples(records, image_size=image_size, length=length)
    data = grain.MapDataset.source(examples)[process_index::process_count].batch(batch_size, batch_fn=collate)
    return iter(_read(data, workers))


def _read(data: grain.MapDataset, workers: int) -> grain.IterDataset:
    """Reads ahead of the consumer: in threads, or in processes of their own."""
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's workers ask absl for a flag, which only absl's own main would have parsed
        return data.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)).mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        )
    return data.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
