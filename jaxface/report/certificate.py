"""The page of a certificate: what two models have in common, value by value."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from markupsafe import Markup, escape
from matplotlib.figure import Figure

from jaxface.report.markup import left, page, picture, strong, table


def certificate_page(title: str, found: Mapping[str, Any], departing: Collection[str], figure: Figure) -> str:
    """A whole page that stands alone.

    Args:
      title: names the two models.
      found: what `jaxface.originals.certificate.Certificate.to_json` gives.
      departing: the names of the values that are beyond their budgets.
      figure: the errors along the pass.
    """
    parts = [
        ("errors", "Errors", "How far each value is from the original in float64", picture(figure, "Errors along the pass", title)),
        ("departure", "Departure", "Where the two part", _departure(found)),
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


def _layers(found: Mapping[str, Any], departing: Collection[str]) -> Markup:
    def row(layer: Mapping[str, Any]) -> list[object]:
        word = strong("beyond its budget") if layer["name"] in departing else "equal"
        return [layer["name"], *(f"{layer[key]:.2e}" for key in ("error", "original_error", "budget")), word]

    return table(("value", "ours", "the original's own", "budget", ""), [row(layer) for layer in found["layers"]])
