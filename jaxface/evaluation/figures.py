"""The pictures of a run: each function returns a Matplotlib figure; `to_svg` and `to_png_bytes` write it.

Figures carry no background and draw their text in one ink, so that the same drawing fits a printed page and a dark screen.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from jaxface.evaluation import metrics

INK, FAINT, GRID = "#24292f", "#6e7781", "#d8dee4"
RIGHT, WRONG = "#2e7d4f", "#c0392b"
COLOURS = ("#3a6ea5", "#d0803c", "#3f9277", "#8c5fa8", "#b5495b", "#7f8c3a", "#4c9fb3", "#8a6d52")

STYLE: Mapping[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": mpl.cycler(color=COLOURS),
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",
}

Series = tuple[np.ndarray, np.ndarray]
"""Steps and values, each `[N]`."""


def _new(width: float, height: float, **grid: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(**grid)


def styled(draw: Any) -> Any:
    """Draws under the common style; on anyone's own figure function it gives that function the same look."""

    def wrapper(*args: Any, **options: Any) -> Figure:
        with mpl.rc_context(dict(STYLE)):
            return draw(*args, **options)

    wrapper.__name__, wrapper.__doc__, wrapper.__wrapped__ = draw.__name__, draw.__doc__, draw
    return wrapper


def thin(series: Series, points: int = 240) -> Series:
    """At most `points` means over neighbouring steps: a curve of a long run, small enough for a page."""
    steps, values = series
    if len(steps) <= points:
        return series
    edges = np.linspace(0, len(steps), points + 1).astype(int)
    return np.add.reduceat(steps, edges[:-1]) / np.diff(edges), np.add.reduceat(values, edges[:-1]) / np.diff(edges)


def smooth(values: np.ndarray, weight: float = 0.9) -> np.ndarray:
    """Running mean with exponential weights, without a bias to the start."""
    total, norm, result = 0.0, 0.0, np.empty(len(values))
    for index, value in enumerate(values):
        total, norm = weight * total + (1 - weight) * value, weight * norm + 1 - weight
        result[index] = total / norm
    return result


def _finish(axes: Axes, title: str, ylabel: str, entries: int) -> None:
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if entries > 1:
        axes.legend(ncols=2 if entries > 3 else 1)


@styled
def loss_curve(train: Series, validation: Series, title: str = "Loss", ylabel: str = "loss") -> Figure:
    """One loss over the steps: training faint with its running mean, validation as dots on a line."""
    figure, axes = _new(3.9, 2.7)
    drawn = 0
    if len(train[0]):
        steps, values = thin(train)
        axes.plot(steps, values, color=COLOURS[0], alpha=0.28, linewidth=1.0)
        axes.plot(steps, smooth(values), color=COLOURS[0], label="training")
        drawn += 1
    if len(validation[0]):
        axes.plot(*thin(validation), color=COLOURS[1], marker="o", markersize=3.2, label="validation")
        drawn += 1
    values = np.concatenate([thin(train)[1], validation[1]])
    if len(values):
        # a first few huge losses must not flatten the rest
        axes.set_ylim(min(0.0, values.min()), 1.06 * max(np.quantile(values, 0.985), values[-1]) + 1e-9)
    _finish(axes, title, ylabel, drawn)
    return figure


@styled
def curves(series: Mapping[str, Series], title: str, ylabel: str, *, percent: bool = False) -> Figure:
    """Several quantities over the steps, a line each: accuracies, task weights, log-variances."""
    figure, axes = _new(3.9, 2.7)
    for name, one in series.items():
        steps, values = thin(one)
        axes.plot(steps, 100 * values if percent else values, label=name, marker="o" if len(steps) <= 40 else None, markersize=3.2)
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    _finish(axes, title, ylabel, max(len(series), 2))
    return figure


def accuracy_curve(series: Mapping[str, Series], title: str = "Accuracy") -> Figure:
    """Accuracy (0 to 1) over the steps, a line a task."""
    return curves(series, title, "accuracy", percent=True)


def weight_curve(series: Mapping[str, Series], title: str = "Task weights") -> Figure:
    """The factor of each task's loss over the steps."""
    return curves(series, title, "weight of the loss")


def log_variance_curve(series: Mapping[str, Series], title: str = "Log-variances") -> Figure:
    """The learned log-variances of uncertainty weighting over the steps."""
    return curves(series, title, "log σ²")


def _shades() -> LinearSegmentedColormap:
    colour = to_rgba(COLOURS[0])[:3]
    return LinearSegmentedColormap.from_list("shades", [(*colour, 0.0), (*colour, 0.45), (*colour, 1.0)])


@styled
def confusion(matrix: np.ndarray, classes: Sequence[str], title: str = "") -> Figure:
    """Confusion matrix: each row in percent of its label's records, with the counts below in small; rows without records stay empty."""
    count = len(classes)
    side = 2.4 + 0.27 * count
    figure, axes = _new(side, side * 0.94)
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    # rectangles with an alpha, not an image: sharp at any size, on any background
    axes.pcolormesh(shares, cmap=_shades(), vmin=0, vmax=1, edgecolors=to_rgba(FAINT, 0.25), linewidth=0.5)
    large, small = (8.0, 5.6) if count > 4 else (12.0, 8.0)
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
def reliability_diagram(reliability: metrics.Reliability, title: str = "Calibration") -> Figure:
    """Accuracy against confidence, a bar a bin (its opacity says how many records), beside the diagonal of a calibrated model."""
    figure, axes = _new(3.3, 3.0)
    bins = len(reliability.count)
    full = reliability.count > 0
    opacity = 0.25 + 0.75 * np.sqrt(reliability.count / max(1, reliability.count.max()))
    centres = (np.arange(bins) + 0.5) / bins
    for x, height, alpha in zip(centres[full], reliability.accuracy[full], opacity[full], strict=True):
        axes.bar(100 * x, 100 * height, width=88 / bins, color=COLOURS[0], alpha=alpha)
    axes.plot([0, 100], [0, 100], color=FAINT, linewidth=1.0, linestyle=(0, (4, 3)))
    axes.plot(
        100 * reliability.confidence[full], 100 * reliability.accuracy[full], color=COLOURS[1], marker="o", markersize=3, linewidth=1.2
    )
    axes.text(
        4,
        96,
        f"calibration error {100 * reliability.calibration_error:.1f} %\n{reliability.count.sum():,} records",
        va="top",
        fontsize=8,
        color=INK,
    )
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
        "majority": ("|", FAINT, "majority class"),
        "pixels": ("D", COLOURS[3], "linear on pixels"),
    }
    figure, axes = _new(5.6, 0.85 + 0.46 * len(values))
    for row, task in enumerate(values):
        known = {name: 100 * value for name, value in values[task].items()}
        if "after" in known:
            axes.barh(row, known["after"], height=0.52, color=COLOURS[0], alpha=0.85, label="after training" if row == 0 else None)
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
    figure.legend(loc="outside lower center", ncols=4, columnspacing=1.4, handletextpad=0.5)
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
    figure, grid = _new(1.35 * columns, rows * (1.3 + 0.16 * lines), nrows=rows, ncols=columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, caption in zip(grid.flat, images, captions, strict=False):
        axes.imshow(image)
        for line, (text, right) in enumerate(caption):
            colour = INK if right is None else RIGHT if right else WRONG
            mark = "" if right is None else "✓ " if right else "✗ "
            axes.text(
                0.5, -0.04 - 0.14 * line, mark + text, transform=axes.transAxes, ha="center", va="top", fontsize=6.5, color=colour
            ).set_in_layout(False)
    return figure


def to_png_bytes(figure: Figure, dpi: int = 150, background: str = "white") -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor=background, metadata={"Software": None})
    return buffer.getvalue()


def to_data_uri(data: bytes, media_type: str = "image/png") -> str:
    """Bytes as an address that a page can carry in itself."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def to_svg(figure: Figure, label: str = "") -> str:
    """The figure as an `<svg>` element to stand in a page, the same for the same drawing.

    Ink and grid follow the page's colours (`currentColor`, `--faint`, `--grid`), text stays text, and its ids are its own.

    Args:
      figure: what to write.
      label: what a screen reader says of it; also sets its ids apart from those of other figures on the page.
    """
    buffer = io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": label or "figure"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # names of Matplotlib's own parts, the same in every figure
    text = re.sub(r' transform="rotate\(-0 [^"]*"| ?font-family: [^;"]*;', "", text)  # text takes the page's font
    text = re.sub(r"\d+\.\d{3,}", lambda match: f"{float(match[0]):.2f}", text)
    text = text.replace(INK, "currentColor").replace(FAINT, "var(--faint)").replace(GRID, "var(--grid)")
    width, height = figure.get_size_inches() * 72
    head = (
        f'<svg role="img" aria-label="{html.escape(label)}" style="max-width:{1.45 * width:.0f}px" viewBox="0 0 {width:.2f} {height:.2f}"'
    )
    text = re.sub(r"<svg [^>]*>", f'{head} xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">', text, count=1)
    return re.sub(r"\s*\n\s*", "\n", text).strip()
