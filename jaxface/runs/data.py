"""The prepared records that a run's configuration names, as batches of images; drawn faces are made where it asks for them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import jax

from jaxface.cluster import is_first
from jaxface.data.pipeline import Joined, count_records, eval_batches, train_batches
from jaxface.data.preparation import prepare_synthetic
from jaxface.data.records import SUMMARY
from jaxface.data.sampling import replicas
from jaxface.data.synthetic import DrawnSet
from jaxface.errors import UserError
from jaxface.runs.config import Config

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


def sets_of_run(config: Config, folder: Path) -> tuple[str, ...]:
    """`prepared_sets` for a run that may have been moved since it was trained: faces are drawn beside it, and not where it was."""
    moved = folder.resolve() != config.folder.resolve()
    return prepared_sets(replace(config, out=str(folder.resolve().parent)) if moved else config)


class Batches(Protocol):
    """An iterator of batches that can be closed."""

    def __iter__(self) -> Iterator[dict[str, Any]]: ...

    def __next__(self) -> dict[str, Any]: ...

    def close(self) -> None: ...


class Images:
    """Batches of images; their side in pixels and their framing are the encoder's, which is known later than the data."""

    image_size: int
    framing: str

    def __init__(self, config: Config, sets: tuple[str, ...]) -> None:
        self.config, self.sets = config, sets

    def count(self, split: str, *, missing_ok: bool = False) -> int:
        """The number of records of a split. Raises UserError if no set has it, unless `missing_ok`."""
        return count_records(self.sets, split, missing_ok=missing_ok)

    def epoch_size(self) -> int:
        """The training records that an epoch counts: where they are drawn by their labels, those that carry one of the run's tasks, each as
        often as it stands in the set (`jaxface.data.sampling.replicas`).

        Raises UserError if none does.
        """
        total, tasks = self.count("train"), self.config.tasks
        copies = replicas(Joined(self.sets, "train", tasks).labels)
        if not copies.any():
            raise UserError(f"none of the {total} training records of {', '.join(self.sets)} has a label of {', '.join(tasks)}")
        return total if self.config.data.sampling == "shuffle" else int(copies.sum())

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
            max_repeat=config.data.max_repeat,
            workers=config.data.workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            start=start,
            framing=self.framing,
        )

    def evaluation(self, split: str) -> Iterable[dict[str, Any]]:
        """Every record of a split once, in evaluation batches."""
        return eval_batches(
            self.sets,
            split,
            [task.name for task in self.config.evaluated],
            image_size=self.image_size,
            batch_size=self.config.batch_size // jax.process_count(),
            workers=self.config.data.workers,
            framing=self.framing,
        )
