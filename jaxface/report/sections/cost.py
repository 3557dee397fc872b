"""What accuracy costs: parameters and GFLOPs."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from jaxface.evaluation.summary import evaluate_task
from jaxface.plots import COLOURS, FAINT, new_figure, styled
from jaxface.report.markup import picture, render
from jaxface.report.sections.base import Runs
from jaxface.report.sections.thesis import our_values, printed_costs
from jaxface.runs.folder import Run


def cost(runs: Runs) -> Markup:
    """Parameters and GFLOPs against accuracy, the thesis's models beside ours where both were tested on the same sets."""
    ours, comparable = [], False
    for name, run in runs.items():
        accuracy = our_values(run).get("overall")
        comparable |= accuracy is not None
        accuracy = accuracy or 100 * _mean_accuracy(run)
        parameters, gflops = (run.summary.get(key) or {} for key in ("parameters", "gflops"))
        if accuracy == accuracy and "inference" in parameters and "all products" in gflops:
            whole = gflops["all products"]
            ours.append((name, parameters["inference"] / 1e6, gflops.get("linear") or whole, accuracy, whole))
    if not ours:
        return Markup()
    printed = printed_costs() if comparable else ()
    pictures = [
        picture(cost_figure(ours, printed, column, unit), heading, "cost and accuracy")
        for column, unit, heading in (
            (1, "million parameters at inference", "Size and accuracy"),
            (2, "GFLOPs of an image", "Computation and accuracy"),
        )
    ]
    rows = [[name, f"{size:.2f}", f"{linear:.3f}", f"{whole:.3f}", f"{accuracy:.2f}"] for name, size, linear, accuracy, whole in ours]
    return render("cost.html", pictures=pictures, rows=rows)


def _mean_accuracy(run: Run) -> float:
    """Mean over the tasks; NaN without answers."""
    if run.predictions is None:
        return float("nan")
    found = [evaluate_task(run.predictions, task).get("accuracy") for task in run.tasks]
    return float(np.mean([value for value in found if value is not None] or [np.nan]))


@styled
def cost_figure(ours: list, printed: list, column: int, unit: str) -> Figure:
    """Accuracy over one kind of cost: rows of (name, million parameters, GFLOPs, accuracy in percent)."""
    figure, axes = new_figure(3.9, 2.7)
    for rows, marker, colour, label in ((printed, "o", FAINT, "thesis"), (ours, "D", COLOURS[0], "this page")):
        if rows:
            axes.plot([row[column] for row in rows], [row[3] for row in rows], marker, color=colour, label=label, linestyle="none")
        for row in rows:
            axes.annotate(row[0], (row[column], row[3]), xytext=(5, 3), textcoords="offset points", fontsize=7, color=colour)
    axes.margins(0.25)
    axes.set(xlabel=unit, ylabel="accuracy, %")
    if printed:
        axes.legend()
    return figure
