"""Runs that differ in nothing but their seed, taken together: mean and standard deviation of what they reached."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import rich.table
from markupsafe import Markup

from jaxface.report.markup import left, render
from jaxface.report.sections.base import options_of, settings
from jaxface.runs.folder import Run


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
    """Runs that differ in their seed alone, two or more of them, by the options in which the groups differ (the only one by its name)."""
    found: dict[str, dict[Any, Run]] = {}
    for run in runs:
        found.setdefault(settings(run), {})[run.option("seed")] = run
    several = [list(by_seed.values()) for by_seed in found.values() if len(by_seed) > 1]
    options = [options_of(members[0]) for members in several]
    keys = dict.fromkeys(key for own in options for key in own)
    differing = [key for key in keys if any(own.get(key) != options[0].get(key) for own in options)]
    names = [", ".join(f"{key} {_words(own.get(key))}" for key in differing) for own in options]
    return {name or _common_name(members): members for name, members in zip(names, several, strict=True)}


def _common_name(runs: Sequence[Run]) -> str:
    """What the names of a sweep's runs begin with."""
    return os.path.commonpath([run.name for run in runs]) or runs[0].name


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


def sweep_table(runs: Sequence[Run]) -> rich.table.Table | None:
    """The groups for a terminal; None where no two runs differ in their seed alone."""
    shown = rich.table.Table(*HEADER, title="mean ± standard deviation over seeds, test split")
    for row in _rows(runs):
        shown.add_row(*row)
    return shown if shown.rows else None


def seeds(runs: Mapping[str, Run]) -> Markup:
    """The section of the report; empty where no two runs differ in their seed alone."""
    rows = [[left(name), left(task), *rest] for name, task, *rest in _rows(list(runs.values()))]
    return render("seeds.html", header=[*map(left, HEADER[:2]), *HEADER[2:]], rows=rows) if rows else Markup()


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
