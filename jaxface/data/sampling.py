"""Which record comes when: plain shuffling, or rare classes oftener. An order is a function of (seed, position) alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from jaxface.data.tasks import MISSING

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


def sample_weights(labels: Labels) -> np.ndarray:
    """The weight of each record: the mean over its labels of N_task / (K n_class) (thesis, section 3.2).

    N_task counts the records that carry the task, K its classes that occur, n_class the records of the class. A record without any
    label has weight 0.

    Args:
      labels: [N] int of each task, `MISSING` where a record has none.
    """
    total = np.zeros(len(next(iter(labels.values()))))
    carried = np.zeros_like(total)
    for values in labels.values():
        known = values != MISSING
        counts = np.bincount(values[known])
        weight = known.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))
        total[known] += weight[values[known]]
        carried[known] += 1
    return np.divide(total, carried, out=np.zeros_like(total), where=carried > 0)


def weighted_shares(labels: Labels, classes: Mapping[str, int], weights: np.ndarray) -> dict[str, np.ndarray]:
    """The share of each class among the drawn records that carry a task: the thesis's Table 3.2."""
    shares = {}
    for task, values in labels.items():
        known = values != MISSING
        drawn = np.bincount(values[known], weights[known], minlength=classes[task])
        shares[task] = drawn / drawn.sum() if drawn.sum() else drawn
    return shares


def make_order(sampling: str, labels: Labels, size: int, seed: int) -> Order:
    """The order of training records. `sampling`: "shuffle" or "balanced"."""
    if sampling == "shuffle":
        return Shuffled(size, seed)
    return Weighted(sample_weights(labels), seed)
