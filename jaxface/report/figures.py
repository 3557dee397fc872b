"""The pictures of a run: each function returns a Matplotlib figure, which `to_svg` and `to_png_bytes` of `jaxface.plots` write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from jaxface.evaluation import metrics
from jaxface.plots import COLOURS, FAINT, INK, RIGHT, WRONG, new_figure, styled

Series = tuple[np.ndarray, np.ndarray]
"""Steps and values, each `[N]`."""


def thin(series: Series, points: int = 240) -> Series:
    """At most `points` means over neighbouring steps: a curve of a long run, small enough for a page."""
    steps, values = series
    if len(steps) <= points:
        return series
    edges = np.linspace(0, len(steps), points + 1).astype(int)
    return np.add.reduceat(steps, edges[:-1]) / np.diff(edges), np.add.reduceat(values, edges[:-1]) / np.diff(edges)


def smooth(values: np.ndarray, share: float = 0.02) -> np.ndarray:
    """Mean over neighbours on both sides, with Gaussian weights: unlike a running mean it does not lag behind a falling curve.

    Args:
      values: `[N]`.
      share: width of the Gaussian (its standard deviation) as a share of the curve, at least one and a half points.
    """
    index = np.arange(len(values))
    weights = np.exp(-0.5 * ((index[:, None] - index) / max(1.5, share * len(values))) ** 2)
    return weights @ values / weights.sum(axis=1)


def _finish(axes: Axes, ylabel: str, entries: int) -> None:
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if entries > 1:
        axes.legend(ncols=2 if entries > 3 else 1)


@styled
def loss_curve(train: Series, validation: Series) -> Figure:
    """One loss over the steps: training faint with its mean over neighbours, validation as dots on a line.

    The height is that of the training losses and of the last validation. Earlier validations that lie far above do not flatten the
    rest: a triangle at the upper edge, with the value, stands for each.
    """
    figure, axes = new_figure(3.9, 2.7)
    drawn = 0
    if len(train[0]):
        steps, values = thin(train)
        axes.plot(steps, values, color=COLOURS[0], alpha=0.28, linewidth=1.0)
        axes.plot(steps, smooth(values), color=COLOURS[0], label="training")
        drawn += 1
    if len(validation[0]):
        axes.plot(*thin(validation), color=COLOURS[1], marker="o", markersize=3.2, label="validation")
        drawn += 1
    values = np.concatenate([thin(train)[1], thin(validation)[1]])
    if len(values):
        seen = thin(train)[1] if len(train[0]) else validation[1]
        top = max(np.quantile(seen, 0.995), validation[1][-1] if len(validation[0]) else 0.0)
        inside = values[values <= 2 * top]
        top = 1.06 * max(top, inside.max(initial=0.0)) + 1e-9
        axes.set_ylim(min(0.0, values.min()), top)
        for step, value in zip(*thin(validation), strict=True):
            if value > top:
                axes.plot(step, top, "^", color=COLOURS[1], markersize=6, clip_on=False, zorder=3)
                axes.annotate(f"{value:.1f}", (step, top), xytext=(5, -3), textcoords="offset points", fontsize=7, va="top")
    _finish(axes, "loss", drawn)
    return figure


@styled
def curves(series: Mapping[str, Series], ylabel: str, *, percent: bool = False) -> Figure:
    """Several quantities over the steps, a line each: accuracies, task weights, log-variances."""
    figure, axes = new_figure(3.9, 2.7)
    for name, one in series.items():
        steps, values = thin(one)
        axes.plot(steps, 100 * values if percent else values, label=name, marker="o" if len(steps) <= 40 else None, markersize=3.2)
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    _finish(axes, ylabel, max(len(series), 2))
    return figure


def _shades() -> LinearSegmentedColormap:
    colour = to_rgba(COLOURS[0])[:3]
    return LinearSegmentedColormap.from_list("shades", [(*colour, 0.0), (*colour, 0.45), (*colour, 1.0)])


@styled
def confusion(matrix: np.ndarray, classes: Sequence[str], title: str = "") -> Figure:
    """Confusion matrix: each row in percent of its label's records, with the counts below in small; rows without records stay empty."""
    count = len(classes)
    side = 1.75 + 0.235 * count
    figure, axes = new_figure(side, side * 0.94)
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    # rectangles with an alpha, not an image: sharp at any size, on any background
    axes.pcolormesh(shares, cmap=_shades(), vmin=0, vmax=1, edgecolors=to_rgba(FAINT, 0.25), linewidth=0.5)
    large, small = (8.5, 6.0) if count > 4 else (12.0, 8.0)
    for row, column in np.ndindex(*matrix.shape):
        if matrix[row, column] == 0:
            continue
        colour = "white" if shares[row, column] > 0.55 else INK
        axes.text(column + 0.5, row + 0.47, f"{100 * shares[row, column]:.0f}", ha="center", va="center", fontsize=large, color=colour)
        axes.text(column + 0.5, row + 0.8, f"{matrix[row, column]:,}", ha="center", va="center", fontsize=small, color=colour, alpha=0.75)
    ticks = np.arange(count) + 0.5
    axes.set_xticks(ticks, classes, rotation=40 if count > 4 else 0, ha="right" if count > 4 else "center", rotation_mode="anchor")
    axes.set_yticks(ticks, classes)
    axes.set(xlabel="predicted", ylabel="label")
    axes.set_title(title)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


@styled
def reliability_diagram(reliability: metrics.Reliability, title: str = "") -> Figure:
    """Accuracy against confidence, a bar a bin (its opacity says how many records), beside the diagonal of a calibrated model."""
    figure, axes = new_figure(3.2, 3.0)
    bins = len(reliability.count)
    full = reliability.count > 0
    opacity = 0.25 + 0.75 * np.sqrt(reliability.count / max(1, reliability.count.max()))
    centres = (np.arange(bins) + 0.5) / bins
    for x, height, alpha in zip(centres[full], reliability.accuracy[full], opacity[full], strict=True):
        axes.bar(100 * x, 100 * height, width=88 / bins, color=COLOURS[0], alpha=alpha)
    axes.plot([0, 100], [0, 100], color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
    axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="confidence", ylabel="accuracy")
    axes.set_title(title)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(decimals=0))
        axis.set_major_locator(MaxNLocator(5))
    axes.set_aspect("equal")
    return figure


@styled
def before_after(values: Mapping[str, Mapping[str, float]], title: str = "") -> Figure:
    """Accuracy (0 to 1) per task, a row each: a bar to the trained model, dots for `before`, ticks for the baselines `majority`, `pixels`.

    Args:
      values: per task any of `after`, `before`, `majority`, `pixels`, and `low`, `high` of the interval of `after`.
    """
    marks = {
        "before": ("o", COLOURS[1], "before"),
        "majority": ("|", INK, "majority class"),
        "pixels": ("D", COLOURS[3], "linear on pixels"),
    }
    figure, axes = new_figure(4.7, 0.75 + 0.42 * len(values))
    for row, task in enumerate(values):
        known = {name: 100 * value for name, value in values[task].items()}
        if "after" in known:
            axes.barh(row, known["after"], height=0.5, color=COLOURS[0], alpha=0.55, label="after training" if row == 0 else None)
            axes.text(known["after"] + 1.5, row, f"{known['after']:.1f}", va="center", fontsize=9, fontweight="bold")
        for name, (marker, colour, label) in marks.items():
            if name in known:
                style = {"markeredgecolor": "white", "markeredgewidth": 0.8} if marker != "|" else {"markeredgewidth": 2.2}
                axes.plot(
                    known[name],
                    row,
                    marker,
                    color=colour,
                    markersize=13 if marker == "|" else 7,
                    label=label if row == 0 else None,
                    **style,
                )
    axes.set_yticks(range(len(values)), values, fontsize=9)
    axes.set(xlim=(0, 108), ylim=(len(values) - 0.45, -0.55))
    axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.set_xticks(range(0, 101, 20))
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_title(title)
    figure.legend(loc="outside lower center", ncols=4, columnspacing=1.0, handletextpad=0.4, handlelength=1.4)
    return figure


@styled
def faces(images: np.ndarray, captions: Sequence[Sequence[tuple[str, bool | None]]], columns: int = 6) -> Figure:
    """A page of faces with what was predicted of each.

    Args:
      images: uint8 `[K, H, W, 3]`.
      captions: per face its lines: the text, and whether the prediction is right (None: no label, drawn in plain ink).
    """
    rows = -(-len(images) // columns)
    lines = max((len(caption) for caption in captions), default=0)
    figure, grid = new_figure(1.35 * columns, rows * (1.35 + 0.24 * lines), nrows=rows, ncols=columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, caption in zip(grid.flat, images, captions, strict=False):
        axes.imshow(image)
        for line, (text, right) in enumerate(caption):
            colour = INK if right is None else RIGHT if right else WRONG
            mark = "" if right is None else "✓ " if right else "✗ "
            axes.text(0.5, -0.04 - 0.14 * line, mark + text, transform=axes.transAxes, ha="center", va="top", fontsize=6.5, color=colour)
    return figure
