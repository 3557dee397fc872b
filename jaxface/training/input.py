"""What a run reads: batches of images, or, where the encoder is frozen and nothing augments, of features computed once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxface.config import Config
from jaxface.data.pipeline import TRIES, count_records, eval_batches, train_batches
from jaxface.data.records import SUMMARY, read_labels, splits
from jaxface.data.sampling import make_order
from jaxface.data.sources.synthetic import prepare_synthetic
from jaxface.data.synthetic import DrawnSet
from jaxface.data.tasks import MISSING, with_coarse
from jaxface.errors import UserError
from jaxface.progress import Track
from jaxface.training.cluster import is_first
from jaxface.training.step import shard

Batches = Iterator[dict[str, Any]]

SPECIAL = ("missing", "skew", "noisy", "noise")
"""What the name of a folder of drawn faces tells only where it is not as usual."""


def prepared_sets(config: Config) -> tuple[str, ...]:
    """The folders of records that the configuration names; drawn faces are made if they are not there yet.

    Raises UserError if it names none.
    """
    if config.data.sets:
        return config.data.sets
    if config.data.drawn is None:
        raise UserError("no data: --data.sets FOLDER... (folders written by `python -m jaxface.prepare`)")
    drawn = config.data.drawn
    usual = DrawnSet()
    special = [f"-{key}{getattr(drawn, key)}" for key in SPECIAL if getattr(drawn, key) != getattr(usual, key)]
    name = f"{drawn.style}-{drawn.count}-{drawn.test_count}-{drawn.size}px-seed{drawn.seed}" + "".join(special)
    out = Path(config.out) / "drawn" / name
    if is_first():
        prepare_synthetic(out, **asdict(drawn))
    while not (out / SUMMARY).exists():  # the first process draws for all
        time.sleep(0.2)
    return (str(out),)


class Images:
    """Batches of images; their side in pixels is the encoder's, which is known later than the data."""

    image_size: int

    def __init__(self, config: Config, sets: tuple[str, ...]) -> None:
        self.config, self.sets = config, sets

    def count(self, split: str, *, missing_ok: bool = False) -> int:
        """The number of records of a split. Raises UserError if no set has it, unless `missing_ok`."""
        return count_records(self.sets, split, missing_ok=missing_ok)

    def epoch_size(self) -> int:
        """The training records that an epoch counts: where they are drawn by their labels, those that carry one of the run's tasks.

        Raises UserError if none does.
        """
        total, tasks, labelled = self.count("train"), self.config.tasks, 0
        for folder in self.sets:
            if "train" in splits(folder):
                carried = [values != MISSING for task, values in read_labels(folder, "train").items() if task in tasks]
                labelled += int(np.any(carried, axis=0).sum())
        if not labelled:
            raise UserError(f"none of the {total} training records of {', '.join(self.sets)} has a label of {', '.join(tasks)}")
        return total if self.config.data.sampling == "shuffle" else labelled

    def test_split(self) -> str:
        """`test`, or `validation` for sets without one."""
        return "test" if self.count("test", missing_ok=True) else "validation"

    def train(self, start: int) -> Batches:
        """Training batches of this process without end, from the batch after the first `start`."""
        config = self.config
        return train_batches(
            self.sets,
            config.tasks,
            image_size=self.image_size,
            batch_size=config.batch_size // jax.process_count(),
            seed=config.seed,
            augment=config.data.changes if config.data.augment else None,
            sampling=config.data.sampling,
            workers=config.data.workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            start=start,
        )

    def evaluation(self, split: str) -> Iterable[dict[str, Any]]:
        """Every record of a split once, in evaluation batches."""
        return eval_batches(
            self.sets,
            split,
            with_coarse(self.config.tasks),
            image_size=self.image_size,
            batch_size=self.config.batch_size // jax.process_count(),
            workers=0,
        )


class Features:
    """The encoder's output for every record, computed when a split is first asked for; batches are those of `Images`, row by row.

    Args:
      images: where the records come from.
      encode: images uint8 [devices, B, H, W, 3] -> features [devices, B, D].
    """

    def __init__(self, images: Images, encode: Callable[[np.ndarray], jax.Array]) -> None:
        self.images, self.encode = images, encode
        self._splits: dict[str, dict[str, Any]] = {}

    def split(self, name: str) -> dict[str, Any]:
        """The evaluation batches of a split put together, with `features` [N, D] in place of the images; padding left out."""
        if name not in self._splits:
            parts: list[dict[str, Any]] = []
            with Track(f"features of {name}", self.images.count(name), unit="images") as track:
                for batch in self.images.evaluation(name):
                    features = np.asarray(self.encode(shard(batch.pop("image"))))
                    del batch["skipped"]  # not a column: one name for each record that cannot be read
                    parts.append(batch | {"features": features.reshape(-1, features.shape[-1])})
                    track.advance(int(np.sum(batch["valid"])))
            count = self.images.count(name)
            self._splits[name] = jax.tree.map(lambda *arrays: np.concatenate(arrays)[:count], *parts)
        return self._splits[name]

    def train(self, start: int) -> Batches:
        """As `Images.train` without augmentation."""
        config, records = self.images.config, self.split("train")
        size, share = len(records["valid"]), config.batch_size // jax.process_count()
        labels = {task: records["labels"][task] for task in config.tasks}
        order = make_order(config.data.sampling, labels, size, config.seed)

        def index_at(position: int) -> int:
            index = order[position]
            if not records["valid"][index]:  # the stand-in of an unreadable record: drawn as the pipeline draws it
                rng = np.random.default_rng((config.seed, 1, position))
                index = next((i for i in (int(rng.integers(size)) for _ in range(TRIES)) if records["valid"][i]), -1)
                if index < 0:
                    raise UserError(f"{TRIES} records in a row cannot be read")
            return index

        while True:
            first = start * config.batch_size + jax.process_index() * share
            rows = [index_at(first + k) for k in range(share)]
            yield jax.tree.map(lambda array, rows=rows: array[rows], {**records, "labels": labels})
            start += 1

    def evaluation(self, split: str) -> Iterable[dict[str, Any]]:
        """As `Images.evaluation`, with features in the place of images."""
        records, size = self.split(split), self.images.config.batch_size // jax.process_count()
        for first in range(0, len(records["valid"]), size):
            rows = np.minimum(np.arange(first, first + size), len(records["valid"]) - 1)
            batch = jax.tree.map(lambda array, rows=rows: array[rows], records)
            batch["valid"] = batch["valid"] & (np.arange(first, first + size) < len(records["valid"]))
            yield batch | {"image": batch.pop("features")}
