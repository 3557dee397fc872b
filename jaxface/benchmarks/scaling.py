"""python -m jaxface.bench scaling: how time and memory of a step grow with batch, image size, depth, rank and number of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from jaxface.benchmarks._limits import WORK, Setting
from jaxface.benchmarks._options import print_json
from jaxface.benchmarks.roofline import compiled_case, run_of
from jaxface.cli import parse
from jaxface.data.tasks import TASKS
from jaxface.models.variants import VARIANTS, get_variant
from jaxface.plots import INK, new_figure, styled, to_png_bytes
from jaxface.progress import Track
from jaxface.ranges import Items, Known, OneOf, Rounds, Where, ranged
from jaxface.runs.config import RANDOM, Config, EncoderOptions
from jaxface.timing import interleaved, medians
from jaxface.training.capacity import step_bytes

AXES: dict[str, tuple[int, ...]] = {
    "batch": (2, 4, 8, 16),
    "patches": (16, 36, 100, 196),
    "depth": (2, 4, 8),
    "rank": (8, 32, 128),
    "tasks": (1, 2, 3),
}
"""What is varied, and its values; patches of an image, whose side has their root's size."""


@dataclass(frozen=True)
class Point:
    """A step that is measured; the defaults stand where an axis is not varied."""

    variant: str
    method: str
    batch: int = 8
    patches: int = 36
    depth: int = 5
    rank: int = 32
    tasks: int = 2

    def config(self) -> Config:
        encoder = get_variant(self.variant)
        name = f"{self.variant} with {self.depth} blocks"
        VARIANTS.add(name, replace(encoder, depth=self.depth))
        side = round(self.patches**0.5) * encoder.patch
        return run_of(self.method, self.rank, EncoderOptions(RANDOM, name, side), tuple(TASKS)[: self.tasks])

    def flops(self) -> float:
        """By hand."""
        encoder = replace(get_variant(self.variant), depth=self.depth)
        side = round(self.patches**0.5) * encoder.patch
        return WORK[self.method](Setting(encoder, side, self.batch, self.rank, self.tasks)).flops


@ranged()
class Options:
    """Measures a step along each axis, the others held.

    Attributes:
      variant: the encoder whose width, heads and patch are kept.
      methods: whose step.
      axes: batch, patches, depth, rank, tasks.
      rounds: steps that count.
      plot: a file for the picture.
      json: print one JSON object a point.
    """

    variant: Annotated[str, Known(VARIANTS)] = "PE-Mini-10-60"
    methods: Annotated[tuple[str, ...], OneOf("method", WORK), Items(least=1)] = ("dora",)
    axes: Annotated[tuple[str, ...], OneOf("axis", AXES), Items(least=1)] = tuple(AXES)
    rounds: Rounds = 5
    plot: Where | None = None
    json: bool = False


def measure(options: Options, axis: str) -> list[dict[str, Any]]:
    """Time, memory and FLOPs of each method at each value of an axis; the values take turns."""
    points = {
        (method, value): replace(Point(options.variant, method), **{axis: value}) for method in options.methods for value in AXES[axis]
    }
    compiled = {key: compiled_case(point.method, point.config(), point.batch) for key, point in points.items()}
    seconds = medians(interleaved({key: run for key, (_, run) in compiled.items()}, options.rounds))
    return [
        {
            "axis": axis,
            "value": key[1],
            "method": key[0],
            "seconds": seconds[key],
            "memory_bytes": step_bytes(compiled[key][0]),
            "gflop": point.flops() / 1e9,
        }
        for key, point in points.items()
    ]


def exponent(rows: Sequence[dict[str, Any]], quantity: str) -> float:
    """The power of the axis that the quantity grows with from the first value to the last: 1 for a line through zero, 0 for none."""
    first, last = rows[0], rows[-1]
    return float(np.log(last[quantity] / first[quantity]) / np.log(last["value"] / first["value"]))


def straightness(rows: Sequence[dict[str, Any]], quantity: str) -> float:
    """How far the points are from a straight line, at most, as a share of the largest."""
    x, y = (np.array([row[key] for row in rows], float) for key in ("value", quantity))
    return float(np.abs(np.polyval(np.polyfit(x, y, 1), x) - y).max() / y.max())


def curves(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The rows of each axis and method, in the order of the axis."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["axis"], row["method"]), []).append(row)
    return found


def table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """Every curve: its ends, the power it grows with, and how straight it is."""
    result = Table(title=title)
    for name in ("axis", "method", "from", "to", "ms", "", "power", "bent %", "MiB", "", "power", "bent %", "FLOPs' power"):
        result.add_column(name, justify="left" if name in ("axis", "method") else "right")
    for (axis, method), points in curves(rows).items():
        ends = points[0], points[-1]
        cells = [axis, method, *(str(end["value"]) for end in ends)]
        for quantity, unit in (("seconds", 1e3), ("memory_bytes", 2**-20)):
            cells += [f"{end[quantity] * unit:,.1f}" for end in ends]
            cells += [f"{exponent(points, quantity):.2f}", f"{100 * straightness(points, quantity):.0f}"]
        result.add_row(*cells, f"{exponent(points, 'gflop'):.2f}")
    return result


@styled
def picture(rows: Sequence[dict[str, Any]]) -> Figure:
    """Time above, memory below, one column an axis; dashed, what the FLOPs would have time do from the last point."""
    found = curves(rows)
    axes_names = list(dict.fromkeys(axis for axis, _ in found))
    figure, grid = new_figure(2.6 * len(axes_names), 5, nrows=2, ncols=len(axes_names), squeeze=False)
    for (axis, method), points in found.items():
        column = axes_names.index(axis)
        x = [point["value"] for point in points]
        (line,) = grid[0, column].plot(x, [1e3 * point["seconds"] for point in points], "o-", label=method)
        grid[0, column].plot(
            x, [1e3 * points[-1]["seconds"] * p["gflop"] / points[-1]["gflop"] for p in points], "--", color=line.get_color()
        )
        grid[1, column].plot(x, [point["memory_bytes"] / 2**20 for point in points], "o-", label=method)
    for column, axis in enumerate(axes_names):
        grid[0, column].set(title=axis)
        for row, label in enumerate(("ms a step", "MiB")):
            grid[row, column].set_ylim(bottom=0)
            grid[row, column].set(ylabel=label if column == 0 else "", xlabel=axis if row else "")
    grid[0, 0].plot([], [], "--", color=INK, label="as FLOPs")
    grid[0, 0].legend()
    return figure


def main(arguments: list[str]) -> None:
    """The command."""
    options = parse(Options, args=arguments, prog="python -m jaxface.bench scaling")
    rows = []
    with Track("scaling", len(options.axes), unit="axes") as track:
        for axis in options.axes:
            track.note(axis)
            rows += measure(options, axis)
            track.advance()
    if options.json:
        print_json(rows)
    else:
        Console(width=150).print(table(rows, f"{options.variant}: how a step grows, medians of {options.rounds}"))
    if options.plot:
        options.plot.write_bytes(to_png_bytes(picture(rows)))
