"""Batches for training and evaluation, read with grain: sharded by process, resumable at any batch, the same for any worker count."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags

from jaxface.data.augment import Augment, apply, draw
from jaxface.data.framing import PLAIN, resize
from jaxface.data.images import Unreadable, decode
from jaxface.data.mixing import mix_pairs
from jaxface.data.records import Records, open_records, read_labels, splits
from jaxface.data.sampling import make_order
from jaxface.data.tasks import blank_like
from jaxface.errors import UserError
from jaxface.imports import Imported

cv2.setNumThreads(1)  # the images are small, and each core has a thread or a process of ours

log = logging.getLogger(__name__)

TRIES = 100
"""Records tried in place of an unreadable one before training gives up."""
WORTH_A_READER = 256
"""Records of an evaluation below which starting another process costs more than it saves."""


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
        self.labels = {task: self._labels(task, split) for task in tasks}

    def _labels(self, task: str, split: str) -> np.ndarray:
        """A task's labels [N, ...]; missing in folders that do not know it."""
        found = [read_labels(part.folder, split).get(task) for part in self.parts]
        kept = next((labels for labels in found if labels is not None), np.zeros(0, np.int64))
        parts = [blank_like(kept, len(part)) if labels is None else labels for part, labels in zip(self.parts, found, strict=True)]
        return np.concatenate(parts)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        part, place = self._place(index)
        return part[place] | {"labels": self._of(index)}

    def _of(self, index: int) -> dict[str, Any]:
        return {task: self.labels[task][index] for task in self.tasks}

    def _place(self, index: int) -> tuple[Records, int]:
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[part], index - int(self.starts[part])

    def name(self, index: int) -> str:
        """Words for a record, readable or not."""
        part, place = self._place(index)
        return f"{place} of {part.folder} {part.split}"

    def about(self, index: int) -> dict[str, Any]:
        """The `id`, `source` and `person` of a record; of one that cannot be read words for where it is."""
        try:
            record = self[index]
        except Unreadable:
            record = self.blank(index)
        return {key: record[key] for key in ("id", "source", "person")}

    def blank(self, index: int) -> dict[str, Any]:
        """A record without an image, in the place of one that cannot be read."""
        return {"id": self.name(index), "source": "", "person": "", "labels": self._of(index)}


class TrainBatches(Imported):
    """The endless stream of training batches as random access: batch k is a function of (seed, k), whoever asks for it.

    Args:
      share: (p, n): this process takes the p-th of the n parts of each common batch.
    """

    def __init__(
        self,
        records: Joined,
        *,
        image_size: int,
        batch_size: int,
        seed: int,
        augment: Augment | None,
        sampling: str,
        max_repeat: float = 0.0,
        share: tuple[int, int] = (0, 1),
        framing: str = PLAIN,
    ) -> None:
        self.records, self.image_size, self.batch_size, self.framing = records, image_size, batch_size, framing
        self.seed, self.augment, self.share = seed, augment, share
        self.order = make_order(sampling, records.labels, len(records), seed, max_repeat)

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, index: int) -> dict[str, Any]:
        part, parts = self.share
        first = (index * parts + part) * self.batch_size
        batch = Batch(self.batch_size, self.image_size)
        for row in range(self.batch_size):
            batch.put(row, self._example(first + row, batch.image[row], batch.skipped))
        collected = batch.collect(("id",))
        if self.augment is not None and (self.augment.mixup or self.augment.cutmix):
            rngs = [np.random.default_rng((self.seed, 2, first + row)) for row in range(0, self.batch_size - 1, 2)]
            options = {"mixup": self.augment.mixup, "cutmix": self.augment.cutmix}
            collected["mixed"] = mix_pairs(collected["image"], collected["labels"], rngs, **options)
        return collected

    def _example(self, position: int, out: np.ndarray, skipped: list[str]) -> dict[str, Any]:
        """One record, its image written to `out`."""
        rng = np.random.default_rng((self.seed, 1, position))
        for attempt in range(TRIES):
            # the record that stands in for an unreadable one is drawn from the example's own numbers: no state between examples
            index = self.order[position] if attempt == 0 else int(rng.integers(len(self.records)))
            try:
                record = self.records[index]
                image = decode(record["image"], least=0 if self.augment is not None and self.augment.exact else self.image_size)
            except Unreadable as error:
                skipped.append(_warn(self.records.name(index), error))
                continue
            if self.augment is None:
                resize(image, self.image_size, out, self.framing)
            else:
                apply(image, draw(self.augment, rng), self.image_size, out=out, exact=self.augment.exact, framing=self.framing)
            return record
        raise UserError(f"{TRIES} records in a row cannot be read; the last: {skipped[-1]}")


class EvalBatches(Imported):
    """Every record once, in order; unreadable ones and those past the end are marked as not valid."""

    def __init__(self, records: Joined, *, image_size: int, batch_size: int, share: tuple[int, int] = (0, 1), framing: str = PLAIN) -> None:
        self.records, self.image_size, self.batch_size, self.share, self.framing = records, image_size, batch_size, share, framing

    def __len__(self) -> int:
        return -(-len(self.records) // (self.batch_size * self.share[1]))

    def __getitem__(self, index: int) -> dict[str, Any]:
        first, step = self.share
        batch = Batch(self.batch_size, self.image_size)
        valid = np.zeros(self.batch_size, bool)
        for row in range(self.batch_size):
            position = first + step * (index * self.batch_size + row)
            record = self.records.blank(min(position, len(self.records) - 1))
            if position < len(self.records):
                try:
                    record = self.records[position]
                    resize(decode(record["image"]), self.image_size, batch.image[row], self.framing)
                    valid[row] = True
                except Unreadable as error:
                    batch.skipped.append(_warn(self.records.name(position), error))
            batch.put(row, record)
        return batch.collect(("id", "source", "person")) | {"valid": valid}


class Batch:
    """A batch while it is filled: each image is warped straight into its row."""

    def __init__(self, size: int, image_size: int) -> None:
        self.image = np.zeros((size, image_size, image_size, 3), np.uint8)
        self.records: list[dict[str, Any]] = [{}] * size
        self.skipped: list[str] = []

    def put(self, row: int, record: dict[str, Any]) -> None:
        self.records[row] = record

    def collect(self, names: Sequence[str]) -> dict[str, Any]:
        """Images uint8 [B, H, W, 3], labels int32 or float32 [B, ...] per task, names as object arrays [B], and what was skipped, why."""
        columns = {name: np.array([record[name] for record in self.records], object) for name in names}
        labels = {task: np.array([record["labels"][task] for record in self.records]) for task in self.records[0]["labels"]}
        labels = {task: values.astype(np.float32 if values.dtype.kind == "f" else np.int32) for task, values in labels.items()}
        return {"image": self.image, "labels": labels, **columns, "skipped": np.array(self.skipped, object)}


@lru_cache(maxsize=10_000)
def _warned(name: str, reason: str) -> None:
    log.warning("record %s left out: %s", name, reason)


def _warn(name: str, error: Unreadable) -> str:
    """Says once that a record cannot be read."""
    _warned(name, str(error))
    return f"{name}: {error}"


def train_batches(
    folders: Sequence[str],
    tasks: Sequence[str],
    *,
    image_size: int,
    batch_size: int,
    seed: int,
    augment: Augment | None,
    sampling: str = "balanced",
    max_repeat: float = 0.0,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    start: int = 0,
    framing: str = PLAIN,
) -> grain.DatasetIterator:
    """An endless iterator of training batches, with `get_state()` and `set_state(state)` (JSON) for exact resume.

    Args:
      folders: prepared folders, read as one.
      batch_size: of this process; process p of n takes the p-th part of each of their common batches, which is the batch of one alone.
      augment: random changes, or None.
      sampling: "shuffle" or "balanced".
      max_repeat: how often "balanced" may draw a record in an epoch at most, on average; 0 for any number.
      workers: processes that decode and augment; 0 does it in threads.
      start: batches that are left out at the beginning: a run that goes on after so many steps, on any number of processes.
      framing: how images come to their size, see `jaxface.data.framing`.
    """
    batches = TrainBatches(
        Joined(folders, "train", tasks),
        image_size=image_size,
        batch_size=batch_size,
        seed=seed,
        augment=augment,
        sampling=sampling,
        max_repeat=max_repeat,
        share=(process_index, process_count),
        framing=framing,
    )
    return iter(_read(grain.MapDataset.source(batches)[start:], workers))


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
    framing: str = PLAIN,
) -> Iterator[dict[str, Any]]:
    """The records of a split, each once and in order, in full batches: rows with `valid` False fill the last one up.

    Args:
      workers: processes that decode, as far as the work is worth it; 0 does it in threads.

    Raises UserError, between two batches, where one of those processes is gone.
    """
    records, share = Joined(folders, split, tasks), (process_index, process_count)
    batches = EvalBatches(records, image_size=image_size, batch_size=batch_size, share=share, framing=framing)
    workers = min(workers, len(records) // WORTH_A_READER)
    read = iter(_read(grain.MapDataset.source(batches), workers))
    return _while_all_live(read) if workers else read


def _while_all_live(batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    try:
        yield from batches
    except RuntimeError as error:  # grain's word for a process that is gone
        raise UserError(f"reading failed ({str(error).splitlines()[0]}): run the same command again, with fewer workers") from None


def _read(data: grain.MapDataset, workers: int) -> grain.IterDataset:
    """Reads ahead of the consumer: in threads, or in processes of their own."""
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's workers ask absl for a flag, which only absl's own main would have parsed
        return data.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)).mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        )
    return data.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
