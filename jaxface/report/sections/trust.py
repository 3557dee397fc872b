"""How sure answers may be: sets at a stated coverage, answers withheld, and thresholds of an age, as `jaxface.evaluate` measured them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from jaxface.report.markup import Cell, left, percent, render
from jaxface.report.sections.base import Runs

Json = Mapping[str, Any]
RULES = {"as_predicted": "the likelier side", "fitted": "the fitted limits", "challenge": "the challenge age"}
"""The ways to decide about a threshold, in words."""


def trust(runs: Runs) -> Markup:
    """Of the runs that were evaluated with validation records to fit on."""
    shown = {name: _of_run(run.trust) for name, run in runs.items() if run.trust}
    header = [left("task"), "stated", "hold the label", "95 % interval", "classes, or width", "answered", "wrong of these", "wrong of all"]
    groups = [left("task"), left("group"), "records", "hold the label", "95 % interval", "with a limit of its own"]
    sides = [left("by"), left("of whom"), "below taken for above", "95 % interval", "above taken for below", "95 % interval", "unsure"]
    return render("trust.html", runs=shown, header=header, groups=groups, sides=sides) if shown else Markup()


def _of_run(found: Json) -> dict[str, object]:
    rows, groups = [], []
    for task, own in found["tasks"].items():
        sets, held = own["sets"], own["abstention"]
        ranged = own["kind"] == "regression"
        answered = ["—"] * 3 if ranged else [percent(held[key]["rate"]) for key in ("answered", "wrong", "wrong_without")]
        rows.append([left(task), percent(sets["stated"], 0), *_rate(sets["covered"]), mean_size(sets), *answered])
        for group, rate in sets["groups"].items():
            groups.append([left(task), left(group), f"{rate['records']:,}", *_rate(rate), percent(rate["own"])])
    limit = found.get("threshold")
    sides = [] if limit is None else [_sides(RULES[rule], "all", rates) for rule, rates in limit["rules"].items()]
    for group, rules in limit["groups"].items() if limit else ():
        sides += [_sides(RULES[rule], group, rates) for rule, rates in rules.items() if rates]
    return {"rows": rows, "groups": groups, "limit": limit, "sides": sides, "fitted": found["fitted_on"]}


def mean_size(sets: Json) -> str:
    """How large sets are on average; without a bound where too few validation records were there to fit one."""
    size = sets["mean_size"]
    return f"{size:.3g}" if size is not None else "—" if sets["covered"]["rate"] is None else "∞"


def _sides(rule: str, group: str, rates: Json) -> list[object]:
    none = {"rate": None, "interval": None}
    wrong = [cell for key in ("false_above", "false_below") for cell in _rate(rates.get(key, none))]
    return [left(rule), left(group), *wrong, percent(rates["unsure"]["rate"]) if "unsure" in rates else "—"]


def _rate(rate: Json) -> list[object]:
    """A share with its bar, and its interval."""
    if rate["rate"] is None:
        return [Cell("—"), Cell("—")]
    low, high = rate["interval"]
    return [Cell(percent(rate["rate"]), bar=rate["rate"]), Cell(f"{100 * low:.1f} to {100 * high:.1f}", class_="quiet", sort=low)]
