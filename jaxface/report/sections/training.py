"""How training went: losses, accuracies and the weights of the tasks over the steps."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from jaxface.report import figures
from jaxface.report.markup import picture, render
from jaxface.report.sections.base import Runs


def training(runs: Runs) -> Markup:
    """The curves of every run."""
    shown = {}
    for name, run in runs.items():
        tasks = [task.name for task in run.tasks]
        # the loss that is minimised weighs the tasks, that of validation does not: their plain sums can be compared
        losses = {"Loss, sum of the tasks": tasks} if len(tasks) > 1 else {}
        losses |= {f"Loss, {task}": [task] for task in tasks}
        pictures = []
        for title, parts_of in losses.items():
            train, validation = (run.summed(split, [f"loss/{task}" for task in parts_of]) for split in ("train", "validation"))
            if len(train[0]) or len(validation[0]):
                pictures.append(picture(figures.loss_curve(train, validation), title, name))
        for split, key, title, label in (
            ("validation", "accuracy", "Validation accuracy", "accuracy"),
            ("validation", "balanced_accuracy", "Validation balanced accuracy", "accuracy"),
            ("train", "weight", "Task weights", "weight of the loss"),
        ):
            series = {task: run.series(split, f"{key}/{task}") for task in tasks}
            series = {task: one for task, one in series.items() if len(one[0])}
            if series:
                pictures.append(picture(figures.curves(series, label, percent=label == "accuracy"), title, name))
            if series and key == "weight" and str(run.option("balancing")).startswith("uw"):
                note = " (Figure 4.1)" if run.option("method.name") in ("dora", "mtlora") and len(tasks) == 3 else ""
                # uncertainty weighting weighs by exp(-s), s the log-variance
                series = {task: (steps, -np.log(np.maximum(values, 1e-30))) for task, (steps, values) in series.items()}
                pictures.append(picture(figures.curves(series, "log σ²"), f"Log-variances{note}", name))
        if pictures:
            shown[name] = pictures
    return render("training.html", runs=shown) if shown else Markup()
