"""A certificate as a page and in a terminal: what two models have in common, value by value."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from jaxface.report.markup import left, page, picture, strong, table

ERRORS = ("error", "original_error", "budget")
"""What a certificate says of a value."""


def certificate_page(
    title: str,
    found: Mapping[str, Any],
    departing: Collection[str],
    figure: Figure,
    runs: Figure | None = None,
    maps: Figure | None = None,
) -> str:
    """A whole page that stands alone.

    Args:
      title: names the two models.
      found: what `jaxface.originals.certificate.Certificate.to_json` gives.
      departing: the names of the values that are beyond their budgets.
      figure: the errors along the pass.
      runs: the losses of training runs, where there are some.
      maps: attention maps of both, where they were asked for.
    """
    parts = [
        ("errors", "Errors", "How far each value is from the original in float64", picture(figure, "Errors along the pass", title)),
        ("departure", "Departure", "Where the two part", _departure(found)),
        ("training", "Training", "Training runs side by side", _training(found, runs, title)),
        ("maps", "Maps", "What both attend to", picture(maps, "The images whose maps are furthest apart", title) if maps else Markup()),
        ("layers", "Values", "Every value", _layers(found, departing)),
        ("about", "About", "What was compared", table(("fact", "value"), [[name, left(value)] for name, value in found["about"].items()])),
    ]
    return page(title, Markup("<p><strong>{}</strong></p>").format(_verdict(found)), parts)


def _verdict(found: Mapping[str, Any]) -> str:
    count, factor = len(found["layers"]), found["about"]["factor"]
    if found["verdict"] == "equal":
        return f"Equal: all {count} values are within their budgets, {factor:g} times the original's own rounding."
    return f"They differ, first at {found['first_departure']}."


def _departure(found: Mapping[str, Any]) -> Markup:
    if found["first_departure"] is None:
        return Markup()
    text = escape(found["cause"] or "nothing that was tried explains it")
    rows = [[name, left(word)] for name, word in found["parameters"].items()]
    return Markup("<p>{}: {}</p>").format(found["first_departure"], text) + (table(("parameter", "difference"), rows) if rows else Markup())


def _training(found: Mapping[str, Any], runs: Figure | None, title: str) -> Markup:
    if runs is None:
        return Markup()
    header = ("method", "trained", "losses, float32", "float64", "parameters, float32", "float64", "parted", "", "why")
    rows = []
    for run in found["training"]:
        verdict = run["verdict"] if run["verdict"] == "equal" else strong(run["verdict"])
        rows.append([*_run(run), run["parted"] or "—", verdict, left(run["reason"] or "")])
    text = (
        "The largest difference of a loss over the original's, and at the end that of all that trains over how far it has come. The same "
        "batches, start, rates and decay; no dropout; losses weighed by uncertainty; labels missing. Equal: float64 within 1e-9, float32 "
        "within 1e-4 or as near to float64 as the original's own."
    )
    return Markup("<p>{}</p>").format(text) + picture(runs, "Losses", title) + table(header, rows)


def _layers(found: Mapping[str, Any], departing: Collection[str]) -> Markup:
    def row(layer: Mapping[str, Any]) -> list[object]:
        word = strong("beyond its budget") if layer["name"] in departing else "equal"
        return [layer["name"], *(f"{layer[key]:.2e}" for key in ERRORS), word]

    return table(("value", "ours", "the original's own", "budget", ""), [row(layer) for layer in found["layers"]])


COARSE = re.compile(r"embedding|(text\.)?(blocks\.\d+|features)|tokens|logits|output|inputs\.0\.gradient")
"""The values that a terminal shows of a tower; the certificate has all."""


def show_certificate(title: str, found: Mapping[str, Any], departing: Collection[str], speed: Any, names: Sequence[str]) -> None:
    """Prints the main values, training runs, the verdict and the speeds, where they were measured.

    Args:
      speed: seconds of so many images, ours and the original's, as `jaxface.originals.comparison.Speed`, or None.
      names: of ours and of the original.
    """
    grid = Table("value", "ours", "the original's own", "budget", "", title=title)
    shown = [layer for layer in found["layers"] if COARSE.fullmatch(layer["name"]) or layer["name"] == found["first_departure"]]
    for layer in shown if len(shown) > 2 else found["layers"]:
        word, style = ("beyond its budget", "red") if layer["name"] in departing else ("", None)
        grid.add_row(layer["name"], *(f"{layer[key]:.2e}" for key in ERRORS), word, style=style)
    console = Console()
    console.print(grid)
    if found["training"]:
        _show_training(console, found["training"])
    if found["verdict"] == "equal":
        console.print(f"equal: all {len(found['layers'])} values")
    else:
        console.print(f"differs first at {found['first_departure']}: {found['cause'] or 'nothing that was tried explains it'}")
    if speed is not None:
        console.print(f"vision tower, {speed.images} images: {speed.ours:.3f} s ({speed.images / speed.ours:.1f} images/s)")
        console.print(f"{names[1]}: {speed.original:.3f} s; ratio {speed.ours / speed.original:.2f}")


def _show_training(console: Console, training: Sequence[Mapping[str, Any]]) -> None:
    heads = ("method", "trained", "losses, float32", "float64", "parameters, float32", "float64", "")
    grid = Table(*heads, title="training runs: how far apart")
    for run in training:
        grid.add_row(*_run(run), run["verdict"], style="red" if run["verdict"] == "differs" else None)
    console.print(grid)
    for run in training:
        if run["parted"] is not None:
            console.print(f"{run['method']}: apart from step {run['parted']} on: {run['reason']}")


def _run(run: Mapping[str, Any]) -> list[str]:
    """A run's name, how many numbers train, and how far losses and parameters are apart in both precisions."""
    errors = [run[key][precision] for key in ("largest", "parameters") for precision in ("float32", "float64")]
    return [run["method"], f"{run['trained'][0]:,}", *(f"{error:.1e}" for error in errors)]
