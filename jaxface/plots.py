"""How the figures look and how they are written: one style, as SVG in a page or as PNG.

Figures carry no background and draw their text in one ink, so that the same drawing fits a printed page and a dark screen.
"""

from __future__ import annotations

import base64
import functools
import html
import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, FAINT, GRID = "#24292f", "#6e7781", "#d8dee4"
RIGHT, WRONG = "#2e7d4f", "#c0392b"
COLOURS = ("#3a6ea5", "#d0803c", "#3f9277", "#8c5fa8", "#b5495b", "#7f8c3a", "#4c9fb3", "#8a6d52")

STYLE: dict[Any, Any] = {
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
    "axes.prop_cycle": cycler(color=COLOURS),
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


def new_figure(width: float, height: float, **grid: Any) -> tuple[Figure, Any]:
    """A figure of that many inches and its axes, away from Matplotlib's global state. Call it within `styled`."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(**grid)


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorator of a function that draws a figure: gives it the common style."""

    @functools.wraps(draw)
    def wrapper(*args: Any, **options: Any) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **options)

    return wrapper


def to_png_bytes(figure: Figure, dpi: int = 150, background: str = "white") -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of a script that the font does not have: it draws a box
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
    with mpl.rc_context(STYLE | {"svg.hashsalt": label or "figure"}):
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
