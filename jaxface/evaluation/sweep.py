"""Runs that differ in nothing but their seed, taken together: mean and standard deviation of what they reached."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import rich.table

from jaxface.evaluation.markup import Cell, Html, join, table, tag
from jaxface.evaluation.runs import Run

IGNORED = ("name", "out", "seed", "seeds", "grid", "cluster", "report", "log_every", "checkpoint_minutes", "after")
"""Options that do not tell two experiments apart."""


@dataclass(frozen=True)
class Spread:
    """Values of several runs.

    Attributes:
      values: `[N]`, one a run.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values)) if self.values else float("nan")

    @property
    def deviation(self) -> float:
        """Standard deviation of the sample (N - 1); NaN for fewer than two."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else float("nan")

    def text(self, factor: float = 1.0, digits: int = 1) -> str:
        if not self.values:
            return "—"
        mean = f"{factor * self.mean:.{digits}f}"
        return mean if len(self.values) == 1 else f"{mean} ± {factor * self.deviation:.{digits}f}"


def groups(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by what they are, their seeds left out of it: the options in which the groups differ, or the name of the only one."""
    options = [dict(_flat({key: value for key, value in run.config.items() if key not in IGNORED})) for run in runs]
    keys = dict.fromkeys(key for own in options for key in own)
    differing = [key for key in keys if len({json.dumps(own.get(key)) for own in options}) > 1]
    found: dict[str, list[Run]] = {}
    for run, own in zip(runs, options, strict=True):
        found.setdefault(", ".join(f"{key} {_words(own.get(key))}" for key in differing) or run.name.rpartition("/")[0], []).append(run)
    return found


def spreads(runs: Sequence[Run]) -> dict[str, dict[str, Spread]]:
    """Per task its figures on the test split, and its last weight in the loss."""
    found: dict[str, dict[str, Spread]] = {}
    for task in dict.fromkeys(task.name for run in runs for task in run.tasks):
        sources = {f"{key}/{task}": [run.last("test") for run in runs] for key in ("accuracy", "balanced_accuracy", "mean_absolute_error")}
        sources[f"weight/{task}"] = [run.last("train") for run in runs]
        found[task] = {
            key.partition("/")[0]: Spread(tuple(float(row[key]) for row in rows if isinstance(row.get(key), int | float)))
            for key, rows in sources.items()
        }
    return found


HEADER = ("experiment", "task", "runs", "accuracy, %", "balanced accuracy, %", "mean absolute error, classes", "weight in the loss")


def _rows(runs: Sequence[Run]) -> Iterator[tuple[str, ...]]:
    for name, members in groups(runs).items():
        for task, figures in spreads(members).items():
            shares = [figures[key].text(100) for key in ("accuracy", "balanced_accuracy")]
            yield name, task, str(len(members)), *shares, *(figures[key].text(digits=3) for key in ("mean_absolute_error", "weight"))


def _is_sweep(runs: Sequence[Run]) -> bool:
    return any(len(members) > 1 for members in groups(runs).values())


def sweep_table(runs: Sequence[Run]) -> rich.table.Table | None:
    """The groups for a terminal; None where no two runs differ in their seed alone."""
    if not _is_sweep(runs):
        return None
    shown = rich.table.Table(*HEADER, title="mean ± standard deviation over seeds, test split")
    for row in _rows(runs):
        shown.add_row(*row)
    return shown


def seeds(runs: Mapping[str, Run]) -> Html:
    """The section of the report; empty where no two runs differ in their seed alone."""
    if not _is_sweep(list(runs.values())):
        return Html()
    text = (
        "Runs that differ in nothing but their seed, taken together: mean and standard deviation (of the sample) on the test split, and "
        "the weight that the task had in the loss at the end."
    )
    rows = [[Cell(name, class_="left"), Cell(task, class_="left"), *rest] for name, task, *rest in _rows(list(runs.values()))]
    return join([tag("p", text), table([*(Cell(name, class_="left") for name in HEADER[:2]), *HEADER[2:]], rows)])


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
