"""Which record comes when: plain shuffling, or rare classes more often. An order is a function of (seed, position) alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from jaxface.data.tasks import MISSING
from jaxface.registry import Registry

Labels = Mapping[str, np.ndarray]


class Order(Protocol):
    """The index of the record at each position of an endless stream."""

    def __getitem__(self, position: int) -> int: ...


class Shuffled:
    """Every record once an epoch, in another order each epoch."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self._cached = (-1, np.arange(size))

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self.size)
        cached = self._cached  # taken once: other threads may be in another epoch
        if cached[0] != epoch:
            cached = self._cached = (epoch, np.random.default_rng((self.seed, epoch)).permutation(self.size))
        return int(cached[1][place])


class Weighted:
    """Records drawn with replacement, each with a probability in proportion to its weight."""

    def __init__(self, weights: np.ndarray, seed: int) -> None:
        self.cumulative = np.cumsum(weights / weights.sum())
        self.seed = seed

    def __getitem__(self, position: int) -> int:
        u = np.random.default_rng((self.seed, position)).random()
        return int(min(np.searchsorted(self.cumulative, u, side="right"), len(self.cumulative) - 1))


REPLICATED = {"emotion": 1 / 3}
"""The least share of the records that carry a task: those that do are taken several times (thesis, section 3.7.2)."""


def replicas(labels: Labels) -> np.ndarray:
    """How often each record stands in the set, [N] float: once, or as often as gives a rare task its share of it."""
    copies = np.any([values != MISSING for values in labels.values()], axis=0).astype(float)
    for task, share in REPLICATED.items():
        carries = labels[task] != MISSING if task in labels else np.zeros(len(copies), bool)
        with_task, others = copies[carries].sum(), copies[~carries].sum()
        if 0 < with_task < share * (with_task + others):
            copies[carries] *= others * share / (1 - share) / with_task
    return copies


def sample_weights(labels: Labels, copies: np.ndarray | None = None) -> np.ndarray:
    """The weight of each record: the mean over its labels of N_task / (K n_class) (thesis, section 3.2).

    N_task counts the records that carry the task, K its classes that occur, n_class the records of the class. A record without any
    label has weight 0.

    Args:
      labels: [N] int of each task, `MISSING` where a record has none.
      copies: how often each record stands in the set and is counted, [N]; once where it is not given.
    """
    copies = np.ones(len(next(iter(labels.values())))) if copies is None else copies
    total, carried = np.zeros_like(copies), np.zeros_like(copies)
    for values in labels.values():
        known = values != MISSING
        counts = np.bincount(values[known], copies[known])
        weight = copies[known].sum() / (np.count_nonzero(counts) * np.maximum(counts, 1e-9))
        total[known] += weight[values[known]]
        carried[known] += 1
    return copies * np.divide(total, carried, out=np.zeros_like(total), where=carried > 0)


def shares(labels: Labels, classes: Mapping[str, int], weights: np.ndarray) -> dict[str, np.ndarray]:
    """The share of each class among the drawn records that carry a task: the columns of the thesis's Table 3.2.

    Args:
      weights: of the records, [N]; ones for the set as it is.
    """
    found = {}
    for task, values in labels.items():
        known = values != MISSING
        drawn = np.bincount(values[known], weights[known], minlength=classes[task])
        found[task] = drawn / drawn.sum() if drawn.sum() else drawn
    return found


def task_shares(labels: Labels, weights: np.ndarray) -> dict[str, float]:
    """The share of the drawn records that carry each task."""
    return {task: float(weights[values != MISSING].sum() / weights.sum()) for task, values in labels.items()}


SAMPLINGS: Registry[Callable[[Labels, int, int], Order]] = Registry(
    "sampling",
    {
        "shuffle": lambda labels, size, seed: Shuffled(size, seed),
        "balanced": lambda labels, size, seed: Weighted(sample_weights(labels, replicas(labels)), seed),
    },
)
"""How training records are ordered, by name: from their labels, their number and a seed."""


def make_order(sampling: str, labels: Labels, size: int, seed: int) -> Order:
    """The order of training records. Raises UserError for an unknown name."""
    return SAMPLINGS.get(sampling)(labels, size, seed)
