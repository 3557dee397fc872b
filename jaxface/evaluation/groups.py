"""Errors by group of people: age and gender as labelled, both at once, and any column that the records carry (FairFace's race)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from jaxface.data.tables import Table, pairs
from jaxface.data.tasks import Task, known
from jaxface.errors import UserError
from jaxface.evaluation.predictions import Predictions

PERSONAL = ("gender", "age")
"""Tasks whose labels say which group a person is of."""
FEWEST = 30
"""Records that a group needs to be compared with others."""


@dataclass(frozen=True)
class GroupErrors:
    """A task's errors in one group.

    Attributes:
      task: what is predicted.
      attribute: what makes the group: `gender`, `gender x age`, `race`.
      group: which one: `female`, `female x 70+`.
      count: its labelled records.
      errors: those predicted wrong.
      low, high: Wilson's 95 % interval of the error rate.
    """

    task: str
    attribute: str
    group: str
    count: int
    errors: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        """Share of wrong predictions."""
        return self.errors / self.count


@dataclass(frozen=True)
class Disparity:
    """The groups of an attribute that a task fares best and worst in, of those with at least `FEWEST` records.

    `certain`: the two intervals do not overlap.
    """

    task: str
    attribute: str
    best: GroupErrors
    worst: GroupErrors

    @property
    def gap(self) -> float:
        """Difference of the error rates."""
        return self.worst.rate - self.best.rate

    @property
    def certain(self) -> bool:
        return self.worst.low > self.best.high

    def __str__(self) -> str:
        """One sentence."""
        worst, best = (f"{100 * g.rate:.1f} % of {g.count:,} {g.group}" for g in (self.worst, self.best))
        doubt = "" if self.certain else " (their 95 % intervals overlap)"
        return f"{self.task} by {self.attribute}: wrong for {worst}, {best}{doubt}"


def attributes(predictions: Predictions) -> dict[str, np.ndarray]:
    """The group `[N]` of every record by attribute and by pairs of them; '' where it is not known."""
    single = {}
    for task in predictions.tasks:
        if task.name in PERSONAL and predictions.labels[task.name].ndim == 1 and task.classes:
            single[task.name] = np.array([*task.classes, ""], object)[predictions.labels[task.name]]  # MISSING is the last
    single = {name: single[name] for name in PERSONAL if name in single} | {k: np.asarray(v, object) for k, v in predictions.groups.items()}
    pairs = {}
    for (a, first), (b, second) in combinations(single.items(), 2):
        both = (first != "") & (second != "")
        pairs[f"{a} x {b}"] = np.where(both, first + " x " + second, "")
    return single | pairs


def group_errors(predictions: Predictions) -> list[GroupErrors]:
    """Errors of every task in every group that has labelled records, groups in the order of their names."""
    found = attributes(predictions)
    return [row for task in predictions.tasks for name, groups in found.items() for row in _errors(predictions, task, name, groups)]


def _errors(predictions: Predictions, task: Task, attribute: str, groups: np.ndarray) -> Iterator[GroupErrors]:
    labels = predictions.labels[task.name]
    wrong = ~predictions.right(task)
    there = known(labels) & (groups != "")
    for group in sorted(set(groups[there])):
        inside = there & (groups == group)
        count, errors = int(inside.sum()), int((wrong & inside).sum())
        low, high = binomtest(errors, count).proportion_ci(method="wilson")
        yield GroupErrors(task.name, attribute, group, count, errors, float(low), float(high))


def disparities(rows: list[GroupErrors]) -> list[Disparity]:
    """Best and worst group of every task and attribute with at least two groups that are large enough, largest gap first."""
    sets: dict[tuple[str, str], list[GroupErrors]] = {}
    for row in rows:
        if row.count >= FEWEST:
            sets.setdefault((row.task, row.attribute), []).append(row)
    found = [Disparity(*key, min(own, key=lambda g: g.rate), max(own, key=lambda g: g.rate)) for key, own in sets.items() if len(own) > 1]
    return sorted(found, key=lambda disparity: -disparity.gap)


def to_rows(errors: list[GroupErrors]) -> list[dict[str, Any]]:
    """As JSON values."""
    return [{**asdict(row), "rate": row.rate} for row in errors]


def read_groups(path: Path) -> tuple[str, Mapping[str, str]]:
    """A column of groups by record id, from `FILE.csv:COLUMN`, or `FILE.csv:COLUMN:ID_COLUMN` where the ids stand not in the first column.

    Raises UserError if there is no such file or column.
    """
    name, *columns = str(path).rsplit(":", 2 if Path(str(path).rsplit(":", 2)[0]).is_file() else 1)
    try:
        if not columns:
            raise UserError(
                f"expected FILE.csv:COLUMN or FILE.csv:COLUMN:ID_COLUMN with columns of {', '.join(Table(Path(name), ()).names)}"
            )
        return columns[0], pairs(Path(name), *columns)
    except UserError as error:
        raise UserError(f"--groups {error}") from None


def with_groups(predictions: Predictions, name: str, groups: Mapping[str, str]) -> Predictions:
    """The predictions with a further column. Raises UserError if no record's id is among the groups."""
    column = np.array([groups.get(str(record), "") for record in predictions.id], object)
    if not (column != "").any():
        example = next(iter(groups), "nothing")
        raise UserError(
            f"--groups {name}: no record has an id of that table (the records: {predictions.id[0]} ..., the table: {example} ...)"
        )
    return replace(predictions, groups={**predictions.groups, name: column})
