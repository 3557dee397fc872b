"""What the runs reached: accuracy before and after, beside the baselines."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from markupsafe import Markup

from jaxface.data.tasks import Task
from jaxface.evaluation.measures import measure_of
from jaxface.evaluation.summary import evaluate_task
from jaxface.report import figures
from jaxface.report.markup import Cell, left, percent, picture, render, strong
from jaxface.report.sections.base import Runs
from jaxface.runs.folder import Run


def _outcome(run: Run, task: Task) -> dict[str, float]:
    """The figures of one task that the run recorded, recomputed from the stored answers where there are any."""
    found: dict[str, float | None] = {}
    for when, predictions, split in (("before", run.before, "before"), ("after", run.predictions, "test")):
        there = predictions is not None and task in predictions.tasks and len(predictions)
        values = evaluate_task(predictions, task) if there else {}
        row = values or {
            key.removesuffix(f"/{task.name}"): value for key, value in run.last(split).items() if key.endswith(f"/{task.name}")
        }
        found |= {when: row.get("accuracy"), f"{when} balanced": row.get("balanced_accuracy")}
        if values:
            found |= {"majority": values["majority"], "records": values["count"]}
            if predictions is not None and when == "after":
                found["low"], found["high"] = measure_of(task).intervals(predictions, task)["accuracy"]
                found |= {key: value for key, value in values.items() if key in ("macro_f1", "off_by_one")}
    for baseline, values in run.baselines.items():
        found[baseline] = values.get(task.name)
    return {key: value for key, value in found.items() if isinstance(value, int | float) and np.isfinite(value)}


def results(runs: Runs) -> Markup:
    """Accuracy of every run and task on its test records."""
    outcomes = {(name, task): _outcome(run, run_task) for name, run in runs.items() for run_task in run.tasks for task in [run_task.name]}
    outcomes = {key: outcome for key, outcome in outcomes.items() if "after" in outcome or "before" in outcome}
    if not outcomes:
        return Markup()
    pictures = []
    for name in runs:
        own = {task: outcome for (run, task), outcome in outcomes.items() if run == name}
        if own:
            pictures.append(picture(figures.before_after(own), name, "accuracy per task"))
    optional = {"majority": "majority class", "pixels": "linear on pixels"}
    shown = {key: title for key, title in optional.items() if any(key in outcome for outcome in outcomes.values())}
    rows = [
        [
            name,
            left(task),
            percent(outcome.get("before")),
            Cell(percent(outcome.get("after")), class_="strong", bar=outcome.get("after")),
            _interval(outcome),
            _gain(outcome, "before", "after"),
            percent(outcome.get("before balanced")),
            strong(percent(outcome.get("after balanced"))),
            *(percent(outcome.get(key)) for key in shown),
            f"{outcome['records']:,.0f}" if "records" in outcome else "—",
        ]
        for (name, task), outcome in outcomes.items()
    ]
    header = [
        "run",
        left("task"),
        "accuracy before",
        "accuracy",
        "95 % interval",
        "gain",
        "balanced before",
        "balanced",
        *shown.values(),
        "test records",
    ]
    return render("results.html", pictures=pictures, header=header, rows=rows)


def _interval(outcome: Mapping[str, float]) -> Cell:
    if "low" not in outcome:
        return Cell("—")
    return Cell(f"{100 * outcome['low']:.1f} to {100 * outcome['high']:.1f}", class_="quiet", sort=outcome["low"])


def _gain(outcome: Mapping[str, float], start: str, end: str) -> Cell:
    if start not in outcome or end not in outcome:
        return Cell("—")
    points = 100 * (outcome[end] - outcome[start])
    return Cell(f"{points:+.1f}", class_="right" if points > 0 else "wrong" if points < 0 else None, sort=points)
