"""The figures printed in the thesis (A. Sessa, University of Salerno, 2025, chapter 4), as printed, and where they contradict each other.

`thesis.toml` beside this file holds them, uncorrected: `recompute` says what the printed figures give, and `contradictions` lists each
place where that, or another table, differs from what is printed by more than rounding can explain.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from importlib.resources import files
from typing import Any

from jaxface.evaluation.metrics import TEST_SETS, average_over_sources, averaged_sources, overall

ROUNDING = 0.01
"""Two figures printed with two decimals, or one and the mean of others, may differ by this much in percent and still agree."""


Printed = Decimal | int | str
"""What a table prints: a figure with its digits, or a word in place of one."""


@dataclass(frozen=True)
class Table:
    """A printed table.

    Attributes:
      number: as in the thesis, or the section or figure that a figure is given in.
      title: what it shows.
      columns: names of what is printed.
      rows: per printed name one value a column.
      setting: `single` or `multi` for models trained on one task or on all; empty where that makes no difference.
      only: no other models belong into it.
      renamed: the names of models in other tables, by their names in this one, where they differ.
      notes: what is printed below.
    """

    number: str
    title: str
    columns: tuple[str, ...]
    rows: Mapping[str, Sequence[Printed]]
    setting: str = ""
    only: bool = False
    renamed: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def models(self) -> dict[str, str]:
        """Names of the rows, by the models' names in all tables."""
        return {self.renamed.get(name, name): name for name in self.rows}

    def value(self, model: str, column: str) -> float | None:
        """What is printed for a model in a column; None if no figure is."""
        if model not in self.models or column not in self.columns:
            return None
        printed = self.rows[self.models[model]][self.columns.index(column)]
        return None if isinstance(printed, str) else float(printed)


def _read() -> tuple[Table, ...]:
    text = (files("jaxface.report") / "thesis.toml").read_text(encoding="utf-8")
    entries: Any = tomllib.loads(text, parse_float=Decimal)["table"]
    return tuple(Table(**(entry | {"columns": tuple(entry["columns"])})) for entry in entries)


THESIS = _read()
"""Every printed table, and the figures that the text gives."""

UNTRAINED_JOINTLY = frozenset({"ZS", "LP"})
"""Models that are the same whether one task is looked at or all three: their figures must agree between the two settings."""


@dataclass(frozen=True)
class Contradiction:
    """A figure that does not agree with others.

    Attributes:
      model: whose figure.
      column: which figure.
      table: where it is printed.
      printed: what is printed there.
      other: what it should equal.
      why: where the other comes from.
    """

    model: str
    column: str
    table: str
    printed: float
    other: float
    why: str

    def __str__(self) -> str:
        place = self.table if self.table[0].isalpha() else f"Table {self.table}"
        return f"{self.model}, {self.column}: {place} prints {format_figure(self.printed)}, but {self.why} {format_figure(self.other)}"


def format_figure(value: Printed | float) -> str:
    """A figure as the thesis prints it: its own digits, ours with two decimals, counts of parameters in full."""
    return f"{value:.2f}" if isinstance(value, float) and value < 1000 else str(value) if isinstance(value, str) else f"{value:,.10g}"


def _known(parts: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in parts.items() if value is not None}


def recompute(model: str, column: str, tables: Sequence[Table]) -> float | None:
    """A mean from the figures that it is the mean of, by the thesis's definition; None if one of them is not printed.

    The mean over a task's data sets leaves out ages that another model estimated (VGGFace2). Rounded as printed, to two decimals.
    """
    if column == "overall":
        parts = {f"{task}/average": _first(model, f"{task}/average", tables) for task in TEST_SETS}
        return None if len(known := _known(parts)) < len(parts) else round(overall(known), 2)
    task, _, what = column.partition("/")
    if what != "average":
        return None
    parts = {source: _first(model, f"{task}/{source}", tables) for source in averaged_sources(task, TEST_SETS[task])}
    return None if len(known := _known(parts)) < len(parts) else round(average_over_sources(task, known), 2)


def contradictions(tables: Sequence[Table] = THESIS) -> list[Contradiction]:
    """Every printed figure that differs by more than rounding from its recomputation or from the same figure in an earlier table."""
    return [*_against_recomputation(tables), *_against_each_other(tables), *_sums(tables)]


def _first(model: str, column: str, tables: Sequence[Table]) -> float | None:
    return next((value for table in tables if (value := table.value(model, column)) is not None), None)


def _printed(tables: Sequence[Table]) -> Iterator[tuple[Table, str, str, float]]:
    for table in tables:
        for model in table.models:
            figures = ((column, table.value(model, column)) for column in table.columns)
            yield from ((table, model, column, value) for column, value in figures if value is not None)


def _differ(first: float, second: float) -> bool:
    return abs(first - second) > ROUNDING + 1e-9


def _against_recomputation(tables: Sequence[Table]) -> Iterator[Contradiction]:
    for table, model, column, value in _printed(tables):
        # a table's own figures come first, then those of its setting
        nearest = [table, *(other for other in tables if other.setting in (table.setting, ""))]
        computed = recompute(model, column, nearest)
        if computed is not None and _differ(value, computed):
            yield Contradiction(model, column, table.number, value, computed, "the figures it averages give")


def _against_each_other(tables: Sequence[Table]) -> Iterator[Contradiction]:
    seen: dict[tuple[str, str, str], tuple[str, float]] = {}
    for table, model, column, value in _printed(tables):
        key = ("" if model in UNTRAINED_JOINTLY else table.setting, model, column)
        number, earlier = seen.setdefault(key, (table.number, value))
        if _differ(value, earlier):
            yield Contradiction(model, column, table.number, value, earlier, f"Table {number} prints")


def _sums(tables: Sequence[Table]) -> Iterator[Contradiction]:
    for table, model, column, value in _printed(tables):
        if column == "parameters/total":
            total = sum(table.value(model, f"parameters/{part}") or 0 for part in ("text", "vision"))
            if total != value:
                yield Contradiction(model, column, table.number, value, total, "its parts add up to")
