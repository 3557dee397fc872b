"""The figures printed in the thesis (A. Sessa, University of Salerno, 2025, chapter 4), as printed, and where they contradict each other.

A column is named by what it holds: `TASK/SOURCE` for an accuracy in percent on one data set, `TASK/average` for the mean over the data
sets, `overall` for the mean over the tasks. Nothing here is corrected: `recompute` says what the printed figures give, and
`contradictions` lists each place where that, or another table, differs from what is printed by more than rounding can explain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxface.evaluation.metrics import ESTIMATED_LABELS, average_over_sources, overall

SOURCES: Mapping[str, tuple[str, ...]] = {
    "emotion": ("rafdb",),
    "age": ("utkface", "fairface", "vggface2"),
    "gender": ("utkface", "fairface", "vggface2"),
}
"""The test sets of each task."""

ROUNDING = 0.01
"""Two figures printed with two decimals, or one and the mean of others, may differ by this much in percent and still agree."""


@dataclass(frozen=True)
class Table:
    """A printed table.

    Attributes:
      number: as in the thesis, or the section for a figure given in the text.
      title: what it shows.
      setting: `single` or `multi` for models trained on one task or on all; empty where that makes no difference.
      columns: names of what is printed.
      rows: per model one value a column, None where nothing is printed.
    """

    number: str
    title: str
    setting: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[float | None, ...]]

    def value(self, model: str, column: str) -> float | None:
        """What is printed for a model in a column; None if nothing is."""
        if model not in self.rows or column not in self.columns:
            return None
        return self.rows[model][self.columns.index(column)]


_AVERAGES = ("emotion/average", "age/average", "gender/average", "overall")
_AGE = ("age/utkface", "age/fairface", "age/vggface2")
_GENDER = ("gender/utkface", "gender/fairface", "gender/vggface2")
_ONE = ("age/fairface", "age/utkface", "gender/fairface", "gender/utkface", "emotion/rafdb")

THESIS: tuple[Table, ...] = (
    Table(
        "4.1",
        "Zero-shot accuracy on the test sets",
        "",
        ("age/utkface", "gender/utkface", "age/fairface", "gender/fairface", "emotion/rafdb", "age/vggface2", "gender/vggface2"),
        {"ZS": (48.62, 96.63, 46.11, 97.60, 66.57, 42.01, 95.78)},
    ),
    Table(
        "4.2",
        "Mean zero-shot accuracy",
        "",
        ("age/average", "gender/average", "emotion/average", "overall"),
        {"ZS": (47.36, 96.67, 66.57, 69.61)},
    ),
    Table(
        "4.3",
        "Parameters of the zero-shot model",
        "",
        ("parameters/text", "parameters/vision", "parameters/total", "gflops"),
        {"ZS": (353_986_561, 318_212_106, 671_137_793, 699.76)},
    ),
    Table(
        "4.4",
        "Emotion, single task",
        "single",
        ("emotion/rafdb",),
        {"ZS": (66.57,), "LP": (84.32,), "AP": (84.91,), "FT4": (88.78,), "DoRA": (90.83,)},
    ),
    Table(
        "4.5",
        "Age, single task",
        "single",
        (*_AGE, "age/average"),
        {
            "ZS": (48.62, 46.11, 42.01, 47.36),
            "LP": (61.56, 61.69, 57.75, 61.28),
            "AP": (61.41, 61.75, 57.80, 61.47),
            "FT4": (63.11, 62.50, 59.78, 62.80),
            "DoRA": (63.80, 63.64, 61.24, 63.72),
        },
    ),
    Table(
        "4.6",
        "Gender, single task",
        "single",
        (*_GENDER, "gender/average"),
        {
            "ZS": (96.63, 97.60, 95.78, 96.67),
            "LP": (97.00, 97.70, 97.92, 97.54),
            "AP": (96.92, 97.74, 97.98, 97.55),
            "FT4": (97.02, 97.71, 97.99, 97.57),
            "DoRA": (96.97, 97.72, 98.01, 97.56),
        },
    ),
    Table(
        "4.7",
        "Loss balancing: moving average (EMA) or uncertainty weighting (UW)",
        "multi",
        _AVERAGES,
        {
            "FT4 EMA": (86.47, 62.96, 97.44, 82.29),
            "FT4": (88.43, 63.00, 97.41, 82.94),
            "MTLoRA EMA": (88.98, 63.29, 97.51, 83.26),
            "MTLoRA": (90.06, 64.03, 97.51, 83.86),
        },
    ),
    Table(
        "4.8",
        "Emotion, multi-task",
        "multi",
        ("emotion/rafdb",),
        {"LP": (84.82,), "AP": (85.12,), "FT4": (88.42,), "DoRA": (91.21,), "MTLoRA": (90.06,)},
    ),
    Table(
        "4.9",
        "Age, multi-task",
        "multi",
        _AGE,
        {
            "LP": (61.56, 61.00, 57.75),
            "AP": (63.04, 61.89, 59.94),
            "FT4": (62.54, 63.45, 61.68),
            "DoRA": (63.34, 63.73, 61.69),
            "MTLoRA": (63.96, 64.11, 62.74),
        },
    ),
    Table(
        "4.10",
        "Gender, multi-task",
        "multi",
        _GENDER,
        {
            "LP": (97.00, 97.70, 97.92),
            "AP": (96.79, 97.63, 97.79),
            "FT4": (96.68, 97.71, 97.81),
            "DoRA": (96.90, 97.57, 98.00),
            "MTLoRA": (96.93, 97.62, 98.00),
        },
    ),
    Table(
        "4.11",
        "Averages, single task",
        "single",
        _AVERAGES,
        {
            "ZS": (66.57, 47.36, 96.67, 70.20),
            "LP": (84.32, 61.28, 97.54, 81.05),
            "AP": (84.91, 61.47, 97.55, 81.31),
            "FT4": (88.78, 62.80, 97.57, 83.05),
            "DoRA": (90.83, 63.72, 97.56, 84.04),
        },
    ),
    Table(
        "4.12",
        "Averages, multi-task",
        "multi",
        _AVERAGES,
        {
            "ZS": (66.57, 47.36, 96.67, 69.61),
            "LP": (84.91, 61.28, 97.54, 78.76),
            "AP": (85.12, 62.46, 97.40, 81.66),
            "FT4": (88.43, 63.00, 97.41, 82.94),
            "DoRA": (91.21, 63.53, 97.49, 84.07),
            "MTLoRA": (90.06, 64.03, 97.51, 83.86),
        },
    ),
    Table(
        "4.13",
        "Comparison with other published models",
        "multi",
        _ONE,
        {
            "MiVOLO 224": (61.07, None, 95.73, 98.84, None),
            "MiVOLO 384": (62.28, None, 97.5, None, None),
            "CLIP ViT-L/14 336": (63.45, None, 97.1, None, None),
            "ResEmoteNet": (None, None, None, None, 94.76),
            "APViT": (None, None, None, None, 92.21),
            "POSTER++": (None, None, None, None, 91.98),
            "MTLoRA": (64.11, 63.96, 97.62, 96.93, 90.06),
            "LoRA": (63.73, 63.34, 97.57, 96.90, 91.21),
        },
    ),
    Table(
        "4.14",
        "Size, cost and overall accuracy",
        "multi",
        ("parameters/millions", "gflops", "overall"),
        {"ZS": (671, 699.76, 69.61), "FT4": (320, 352.18, 80.56), "DoRA": (320, 352.18, 84.07), "MTLoRA": (329, 368.01, 83.89)},
    ),
    Table(
        "4.15",
        "Agreement of two models' predictions",
        "",
        ("agreement/age/fairface", "agreement/gender/fairface", "agreement/emotion/rafdb"),
        {"LP and ZS": (56.13, 98.69, 69.29), "LoRA and ZS": (53.45, 98.30, 66.75), "LP and LoRA": (81.89, 98.79, 85.22)},
    ),
    Table(
        "4.16",
        "LoRA and DoRA",
        "multi",
        ("age/average", "gender/average", "emotion/average"),
        {"LoRA": (63.45, 97.52, 90.44), "DoRA": (63.53, 97.49, 91.21)},
    ),
    Table("section 4.2", "Zero-shot age accuracy given in the text", "", ("age/vggface2", "age/utkface"), {"ZS": (42.01, 48.72)}),
    Table(
        "section 4.4.5",
        "Overall accuracy given in the text",
        "multi",
        ("overall",),
        {"AP": (81.66,), "FT4": (82.94,), "DoRA": (84.07,), "MTLoRA": (83.88,)},
    ),
)

BALANCED_AGE: Mapping[str, Mapping[str, float]] = {
    "MTLoRA": {"fairface": 62.78, "utkface": 61.98},
    "DoRA": {"fairface": 64.26, "utkface": 61.91},
}
"""Balanced accuracy on age, printed under Figure 4.3."""

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


def format_figure(value: float) -> str:
    """A figure as the thesis prints it: two decimals, counts of parameters in full."""
    return f"{value:,}" if value > 1000 else f"{value:.2f}"


def recompute(model: str, column: str, tables: Sequence[Table]) -> float | None:
    """A mean from the figures that it is the mean of, by the thesis's definition; None if one of them is not printed.

    The mean over a task's data sets leaves out ages that another model estimated (VGGFace2). Rounded as printed, to two decimals.
    """
    if column == "overall":
        parts = {f"{task}/average": _first(model, f"{task}/average", tables) for task in SOURCES}
        return None if None in parts.values() else round(overall(parts), 2)
    task, _, what = column.partition("/")
    if what != "average":
        return None
    parts = {source: _first(model, f"{task}/{source}", tables) for source in SOURCES[task] if source not in ESTIMATED_LABELS.get(task, ())}
    return None if None in parts.values() else round(average_over_sources(parts), 2)


def contradictions(tables: Sequence[Table] = THESIS) -> list[Contradiction]:
    """Every printed figure that differs by more than rounding from its recomputation or from the same figure in an earlier table."""
    return [*_against_recomputation(tables), *_against_each_other(tables), *_sums(tables)]


def _first(model: str, column: str, tables: Sequence[Table]) -> float | None:
    return next((value for table in tables if (value := table.value(model, column)) is not None), None)


def _printed(tables: Sequence[Table]) -> Iterator[tuple[Table, str, str, float]]:
    for table in tables:
        for model, values in table.rows.items():
            yield from ((table, model, column, value) for column, value in zip(table.columns, values, strict=True) if value is not None)


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
