"""Which record comes when: plain shuffling, or rare classes more often. An order is a function of (seed, position) alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from jaxface.data.tasks import known
from jaxface.errors import UserError
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
    copies = np.any([known(values) for values in labels.values()], axis=0).astype(float)
    for task, share in REPLICATED.items():
        carries = known(labels[task]) if task in labels else np.zeros(len(copies), bool)
        with_task, others = copies[carries].sum(), copies[~carries].sum()
        if 0 < with_task < share * (with_task + others):
            copies[carries] *= others * share / (1 - share) / with_task
    return copies


NUMBER_BINS = 10
"""Ranges of equal width that a number's records are balanced over."""


def memberships(values: np.ndarray) -> Any:
    """How much of each labelled record [n] counts for each class [n, K], in all one.

    A class's record is of that class, one of several labels of each in equal parts or, without any, of a class of those, and a number of
    one of `NUMBER_BINS` ranges.

    Args:
      values: labels [n, ...], none of them missing.

    Returns:
      a sparse array of SciPy's.
    """
    from scipy.sparse import csr_array  # slow to import

    if values.dtype.kind == "f":
        low, high = (values.min(), values.max()) if len(values) else (0.0, 0.0)
        values = np.minimum((values - low) / max(high - low, 1e-12) * NUMBER_BINS, NUMBER_BINS - 1).astype(int)
    if values.ndim == 1:
        return csr_array((np.ones(len(values)), values, np.arange(len(values) + 1)), (len(values), values.max(initial=0) + 1))
    there = np.column_stack([values > 0, ~(values > 0).any(1)]).astype(float)
    return csr_array(there / there.sum(1, keepdims=True))


def class_weights(values: np.ndarray, copies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each class its weight [K], N_task / (K n_class) with K those that occur (0 for others), and n_class [K] (thesis, section 3.2).

    Args:
      values: labels [N, ...].
      copies: how often each record stands in the set, [N].
    """
    there = known(values)
    counts = copies[there] @ memberships(values[there])
    return np.where(counts > 0, copies[there].sum() / np.maximum(np.count_nonzero(counts) * counts, 1e-9), 0), counts


def sample_weights(labels: Labels, copies: np.ndarray | None = None, most: float = 0.0) -> np.ndarray:
    """The weight of each record: the mean over its labels of N_task / (K n_class) (thesis, section 3.2).

    N_task counts the records that carry the task, K its classes that occur, n_class the records of the class. A record without any
    label has weight 0.

    Args:
      labels: [N, ...] of each task (see `jaxface.data.kinds`).
      copies: how often each record stands in the set and is counted, [N]; once where it is not given.
      most: how often a record may be drawn in an epoch at most, on average; 0 for any number.
    """
    copies = np.ones(len(next(iter(labels.values())))) if copies is None else copies
    total, carried = np.zeros_like(copies), np.zeros_like(copies)
    for values in labels.values():
        there = known(values)
        total[there] += memberships(values[there]) @ class_weights(values, copies)[0]
        carried[there] += 1
    return capped(copies * np.divide(total, carried, out=np.zeros_like(total), where=carried > 0), most)


def capped(weights: np.ndarray, most: float) -> np.ndarray:
    """Weights [N] of which none is more than `most` times the mean of those that are not 0."""
    for _ in range(100 if most else 0):
        limit = most * weights[weights > 0].mean()
        if weights.max() <= limit * (1 + 1e-6):
            break
        weights = np.minimum(weights, limit)
    return weights


def repeats(labels: Labels, weights: np.ndarray) -> dict[str, np.ndarray]:
    """How often one record of each class [K] is drawn in an epoch on average, per task; 0 for a class without records."""
    pace = weights / weights[weights > 0].mean()
    found = {}
    for task, values in labels.items():
        there = known(values)
        of = memberships(values[there])
        counts = of.sum(0)
        found[task] = np.divide(pace[there] @ of, counts, out=np.zeros_like(counts), where=counts > 0)
    return found


def shares(labels: Labels, classes: Mapping[str, int], weights: np.ndarray) -> dict[str, np.ndarray]:
    """The share of each class among the drawn records that carry a task: the columns of the thesis's Table 3.2.

    Args:
      classes: how many classes each task has.
      weights: of the records, [N]; ones for the set as it is.
    """
    found = {}
    for task, values in labels.items():
        there = known(values)
        drawn = weights[there] @ memberships(values[there])
        drawn = np.pad(drawn, (0, max(classes[task] - len(drawn), 0)))
        found[task] = drawn / drawn.sum() if drawn.sum() else drawn
    return found


def task_shares(labels: Labels, weights: np.ndarray) -> dict[str, float]:
    """The share of the drawn records that carry each task."""
    return {task: float(weights[known(values)].sum() / weights.sum()) for task, values in labels.items()}


def balanced(labels: Labels, size: int, seed: int, most: float = 0.0) -> Order:
    """Rare classes more often, no record more than `most` times an epoch, if that is not 0."""
    return Weighted(sample_weights(labels, replicas(labels), most), seed)


SAMPLINGS: Registry[Callable[..., Order]] = Registry(
    "sampling", {"shuffle": lambda labels, size, seed: Shuffled(size, seed), "balanced": balanced}
)
"""How training records are ordered, by name: from their labels, their number and a seed."""


def make_order(sampling: str, labels: Labels, size: int, seed: int, most: float = 0.0) -> Order:
    """The order of training records.

    Args:
      most: draws of a record in an epoch, on average, for "balanced"; 0 for any number.

    Raises UserError for an unknown name, and for a limit with an order that has none.
    """
    if most and sampling != "balanced":
        raise UserError(f"data.max_repeat {most:g}: it is for data.sampling balanced, not {sampling}")
    return SAMPLINGS.get(sampling)(labels, size, seed, *([most] if most else []))
