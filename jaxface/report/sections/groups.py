"""Whom the models fail: error rates by group, and the largest disparities."""

from __future__ import annotations

from markupsafe import Markup

from jaxface.evaluation.groups import FEWEST, disparities, group_errors
from jaxface.report.markup import Cell, left, percent, render
from jaxface.report.sections.base import Runs

MOST = 8
"""Disparities of a run that are put into words."""


def groups(runs: Runs) -> Markup:
    """Error rates by group and the largest disparities, in words."""
    errors = {name: group_errors(run.predictions) for name, run in runs.items() if run.predictions is not None}
    shown = {
        name: {
            "certain": [str(disparity) for disparity in disparities(found) if disparity.certain][:MOST],
            "rows": [
                [
                    left(error.task),
                    left(error.attribute),
                    left(error.group),
                    f"{error.count:,}",
                    Cell(percent(error.rate), bar=error.rate),
                    Cell(f"{100 * error.low:.1f} to {100 * error.high:.1f}", class_="quiet", sort=error.low),
                ]
                for error in sorted(found, key=lambda error: (error.task, error.attribute, -error.rate))
                if error.count >= FEWEST
            ],
        }
        for name, found in errors.items()
        if found
    }
    header = [*map(left, ("task", "attribute", "group")), "records", "error rate", "95 % interval"]
    return render("groups.html", runs=shown, header=header, fewest=FEWEST) if shown else Markup()
