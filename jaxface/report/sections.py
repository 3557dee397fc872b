"""The parts of the report that show figures: each takes the runs by name and returns HTML, empty where there is nothing to show."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from jaxface.data.tasks import Task
from jaxface.evaluation import metrics
from jaxface.evaluation.predictions import Predictions
from jaxface.report import figures
from jaxface.report.markup import Cell, Html, details, figure, grid, join, percent, table, tag
from jaxface.runs.folder import Run

Runs = Mapping[str, Run]
"""Runs by the name that the page gives them."""


def tasks_of(runs: Runs) -> dict[str, Task]:
    return {task.name: task for run in runs.values() for task in run.tasks}


def _matrix(predictions: Predictions | None, task: Task) -> np.ndarray | None:
    """The confusion matrix, or None if there are no answers or labels."""
    if predictions is None or task.name not in predictions.labels or len(predictions) == 0:
        return None
    matrix = metrics.task_matrix(predictions, task)
    return matrix if matrix.sum() else None


def _outcome(run: Run, task: Task) -> dict[str, float]:
    """The figures of one task that the run recorded, recomputed from the stored answers where there are any."""
    found: dict[str, float | None] = {}
    for when, predictions, split in (("before", run.before, "before"), ("after", run.predictions, "test")):
        matrix, row = _matrix(predictions, task), run.last(split)
        found[when] = row.get(f"accuracy/{task.name}") if matrix is None else float(metrics.accuracy(matrix))
        found[f"{when} balanced"] = (
            row.get(f"balanced_accuracy/{task.name}") if matrix is None else float(metrics.balanced_accuracy(matrix))
        )
        if matrix is not None:
            found["majority"] = float(metrics.majority_share(matrix))
            found["records"] = float(matrix.sum())
            if when == "after":
                found["low"], found["high"] = metrics.bootstrap_interval(metrics.person_matrices(predictions, task), metrics.accuracy)
                found |= {
                    key: value for key, value in metrics.evaluate_task(predictions, task).items() if key in ("macro_f1", "off_by_one")
                }
    for baseline, values in run.baselines.items():
        found[baseline] = values.get(task.name)
    return {key: value for key, value in found.items() if isinstance(value, int | float) and np.isfinite(value)}


def results(runs: Runs) -> Html:
    outcomes = {(name, task): _outcome(run, run_task) for name, run in runs.items() for run_task in run.tasks for task in [run_task.name]}
    outcomes = {key: outcome for key, outcome in outcomes.items() if "after" in outcome or "before" in outcome}
    if not outcomes:
        return Html()
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
            Cell(task, class_="left"),
            _share(outcome.get("before")),
            Cell(percent(outcome.get("after")), class_="strong", bar=outcome.get("after")),
            _interval(outcome),
            _gain(outcome, "before", "after"),
            _share(outcome.get("before balanced")),
            Cell(percent(outcome.get("after balanced")), class_="strong"),
            *(_share(outcome.get(key)) for key in shown),
            f"{outcome['records']:,.0f}" if "records" in outcome else "—",
        ]
        for (name, task), outcome in outcomes.items()
    ]
    header = [
        "run",
        Cell("task", class_="left"),
        "accuracy before",
        "accuracy",
        "95 % interval",
        "gain",
        "balanced before",
        "balanced",
        *shown.values(),
        "test records",
    ]
    text = (
        "Accuracy on the test records that carry a label. Balanced accuracy is the mean recall over the classes. "
        "The interval is a bootstrap over the test records, over whole persons where several are of one; "
        "“before” is the model that the run started from."
    )
    return join([tag("p", text), grid(pictures, "wide"), table(header, rows)])


def _share(value: float | None) -> str:
    return percent(value)


def _interval(outcome: Mapping[str, float]) -> Cell:
    if "low" not in outcome:
        return Cell("—")
    return Cell(f"{100 * outcome['low']:.1f} to {100 * outcome['high']:.1f}", class_="quiet", sort=outcome["low"])


def _gain(outcome: Mapping[str, float], start: str, end: str) -> Cell:
    if start not in outcome or end not in outcome:
        return Cell("—")
    points = 100 * (outcome[end] - outcome[start])
    return Cell(f"{points:+.1f}", class_="right" if points > 0 else "wrong" if points < 0 else None, sort=points)


def training(runs: Runs) -> Html:
    parts = []
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
        for split, key, title, draw in (
            ("validation", "accuracy", "Validation accuracy", figures.accuracy_curve),
            ("validation", "balanced_accuracy", "Validation balanced accuracy", figures.accuracy_curve),
            ("train", "weight", "Task weights", figures.weight_curve),
        ):
            series = {task: run.series(split, f"{key}/{task}") for task in tasks}
            series = {task: one for task, one in series.items() if len(one[0])}
            if series:
                pictures.append(picture(draw(series), title, name))
            if series and key == "weight" and run.option("balancing") == "uw":
                # uncertainty weighting weighs by exp(-s), s the log-variance
                series = {task: (steps, -np.log(np.maximum(values, 1e-30))) for task, (steps, values) in series.items()}
                pictures.append(picture(figures.log_variance_curve(series), "Log-variances", name))
        if pictures:
            parts += [tag("h3", name), grid(pictures)]
    return join(parts)


def picture(drawing: figures.Figure, heading: str, label: str) -> Html:
    return figure(Html(figures.to_svg(drawing, f"{label}: {heading}")), heading)


def classes(runs: Runs) -> Html:
    return join(_classes_of(runs, task) for task in tasks_of(runs).values())


def _classes_of(runs: Runs, task: Task) -> Html:
    matrices = {}
    for name, run in runs.items():
        for when, predictions in (("before", run.before), ("after", run.predictions)):
            matrix = _matrix(predictions, task)
            if matrix is not None:
                matrices[name, when] = matrix
    if not matrices:
        return Html()
    pictures = []
    for (name, when), matrix in matrices.items():
        heading = f"{name}{', before' if when == 'before' else ''}: {percent(float(metrics.accuracy(matrix)))}"
        pictures.append(picture(figures.confusion(matrix, task.classes), heading, f"confusion matrix of {task.name}"))
    bins = [diagram for name, run in runs.items() if (name, "after") in matrices for diagram in _calibration(name, run, task)]
    text = "Rows are labels, columns predictions, each row in percent with the number of records below."
    return join(
        [
            tag("h3", task.name.capitalize(), " ", tag("small", text)),
            grid(pictures),
            _class_table(matrices, task),
            _figures_table(runs, task),
            details("Calibration: accuracy against confidence", grid(bins)),
        ]
    )


def _calibration(name: str, run: Run, task: Task) -> list[Html]:
    """The reliability diagram, and the one with the temperature that was fitted on validation records."""
    temperature = run.temperatures.get(task.name)
    pictures = []
    for divisor, note in ((1.0, ""), *(((temperature, f", temperature {temperature:.2f}"),) if temperature else ())):
        shares = metrics.probabilities(run.predictions.logits[task.name] / divisor)
        bins = metrics.reliability(shares, run.predictions.labels[task.name])
        heading = f"{name}{note}: {percent(bins.calibration_error)} calibration error"
        pictures.append(picture(figures.reliability_diagram(bins), heading, f"calibration of {task.name}"))
    return pictures


FIGURES: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "macro_f1": ("macro F1", percent),
    "off_by_one": ("within one class", percent),
    "mean_absolute_error": ("mean distance in classes", "{:.2f}".format),
    "calibration_error": ("calibration error", percent),
    "average_accuracy": ("mean over data sets", percent),
}
"""Further figures of a task, in a table of their own: by their key in `metrics.evaluate_task`, heading and form."""


def _figures_table(runs: Runs, task: Task) -> Html:
    answered = {name: run.predictions for name, run in runs.items() if _matrix(run.predictions, task) is not None}
    figures_of = {name: metrics.evaluate_task(predictions, task) for name, predictions in answered.items()}
    if all(len(set(predictions.source)) == 1 for predictions in answered.values()):
        figures_of = {
            name: {key: value for key, value in values.items() if key != "average_accuracy"} for name, values in figures_of.items()
        }
    shown = {key: form for key, form in FIGURES.items() if any(key in figures for figures in figures_of.values())}
    rows = [
        [name, *(form(values[key]) if key in values else "—" for key, (_, form) in shown.items())] for name, values in figures_of.items()
    ]
    return table(["run", *(heading for heading, _ in shown.values())], rows) if rows else Html()


def _class_table(matrices: Mapping[tuple[str, str], np.ndarray], task: Task) -> Html:
    """Records, recall and precision of each class; the records once if all runs were tested on the same number of them."""
    records = {name: matrix.sum(axis=1) for (name, _), matrix in matrices.items()}
    same = len({tuple(counts) for counts in records.values()}) == 1
    columns: list[tuple[str, list[object]]] = [("class", [Cell(name, sort=index) for index, name in enumerate(task.classes)])]
    if same:
        columns.append(("records", [f"{count:,}" for count in next(iter(records.values()))]))
    groups: list[tuple[str | None, int]] = [(None, len(columns))]
    for name, counts in records.items():
        own: list[tuple[str, list[object]]] = [] if same else [("records", [f"{count:,}" for count in counts])]
        if (name, "before") in matrices:
            own.append(("recall before", [percent(value) for value in metrics.recall(matrices[name, "before"])]))
        if (name, "after") in matrices:
            matrix = matrices[name, "after"]
            own.append(("recall", [Cell(percent(value), class_="strong", bar=value) for value in metrics.recall(matrix)]))
            own.append(("precision", [percent(value) for value in metrics.precision(matrix)]))
        columns += own
        groups.append((name, len(own)))
    rows = zip(*(values for _, values in columns), strict=True)
    return table([heading for heading, _ in columns], rows, groups=groups if len(records) > 1 else ())
