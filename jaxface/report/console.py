"""Predictions as tables on the terminal and as files that people read."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxface.data.tasks import MISSING, Task
from jaxface.evaluation.measures import MEASURES
from jaxface.evaluation.metrics import probabilities, task_matrix
from jaxface.evaluation.predictions import Predictions
from jaxface.evaluation.summary import summarize
from jaxface.files import aside, check_output, read_object
from jaxface.report.markup import percent
from jaxface.report.sections.trust import RULES, mean_size
from jaxface.runs.folder import read_metrics
from jaxface.runs.predictions_file import write_predictions

FIGURES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "off_by_one": "within one class",
    "majority": "majority class",
}
"""Figures of `jaxface.evaluation.metrics.summarize` that the table shows, in percent."""


def plain_percent(share: float | None, decimals: int = 2) -> str:
    """0.5 as `50.00`, for a column whose head names the unit; nothing for None or NaN."""
    return percent(share, decimals, unit="", missing="")


def metrics_table(predictions: Predictions, title: str) -> Table:
    """One row a task that has labels."""
    summary = summarize(predictions)
    table = Table("task", "records", *(f"{name}, %" for name in FIGURES.values()), title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for task in predictions.tasks:
        if f"count/{task.name}" in summary:
            values = [summary.get(f"{figure}/{task.name}") for figure in FIGURES]
            count = f"{summary[f'count/{task.name}']:,.0f}"
            table.add_row(task.name, count, *map(plain_percent, values))
    return table


def sources_table(scores: dict[str, Any], title: str) -> Table:
    """Accuracy and its interval per task and data set, with the thesis's averages."""
    table = Table("task", "data set", "records", "accuracy, %", "95 % interval", "balanced, %", "macro F1, %", "within one, %", title=title)
    for column in table.columns[2:]:
        column.justify = "right"

    for task, values in scores["tasks"].items():
        interval = " to ".join(map(plain_percent, values["interval"]["accuracy"]))
        whole = {f"all ({len(values['sources'])})" if len(values["sources"]) > 1 else next(iter(values["sources"])): (values, interval)}
        parts = {source: (own, "") for source, own in values["sources"].items()} if len(values["sources"]) > 1 else {}
        for source, (own, interval) in {**parts, **whole}.items():
            figures = [plain_percent(own.get(name)) for name in ("balanced_accuracy", "macro_f1", "off_by_one")]
            table.add_row(task, source, f"{own['count']:,.0f}", plain_percent(own["accuracy"]), interval, *figures)
        if parts:
            over = " + ".join(values["averaged_over"])
            table.add_row(task, f"average: {over or 'none'}", "", plain_percent(values.get("average_accuracy")), end_section=True)
    table.add_row("overall", "mean of the averages", "", plain_percent(scores["summary"].get("overall_accuracy")))
    return table


def show_scores(scores: dict[str, Any], title: str, console: Console) -> None:
    """Prints figures, calibration, and the largest disparities."""
    console.print(sources_table(scores, title))
    for task, values in scores["tasks"].items():
        fit, words = values["calibration"], figures_in_words(values)
        after = "" if fit["temperature"] is None else f", {percent(fit['error_calibrated'])} at temperature {fit['temperature']:.2f}"
        words += [f"calibration error {percent(fit['error'])}{after}"] if "error" in fit else []
        console.print(f"{task}: {', '.join(words)}", markup=False)
    for line in trust_lines(scores.get("trust")):
        console.print(line, markup=False)
    certain = [entry["says"] for entry in scores["disparities"] if entry["certain"]]
    for sentence in certain[:10]:
        console.print(f"disparity: {sentence}")
    if not certain:
        console.print("disparities: none between groups of 30 or more whose 95 % intervals do not overlap")


def trust_lines(found: dict[str, Any] | None) -> Iterator[str]:
    """What sets, withheld answers and a threshold are worth, in a line each."""
    for task, own in (found or {"tasks": {}})["tasks"].items():
        sets, held = own["sets"], own["abstention"]
        yield (
            f"{task}: sets for {percent(sets['stated'], 0)} hold the label of {_rated(sets['covered'])}, "
            f"{mean_size(sets)} {'wide' if own['kind'] == 'regression' else 'classes'} on average"
        )
        if own["kind"] != "regression":
            yield (
                f"{task}: {_rated(held['wrong'])} wrong of the {percent(held['answered']['rate'], 0)} answered at "
                f"{percent(held['stated'], 0)} errors (of all {percent(held['wrong_without']['rate'])})"
            )
    if found and (limit := found.get("threshold")):
        for rule, rates in limit["rules"].items():
            above, below = _rated(rates["false_above"]), _rated(rates["false_below"])
            wrong = f"{above} of those below taken for above, {below} of those above for below"
            yield f"{limit['task']} at {limit['at']:g}, by {RULES[rule]}: {wrong}, {percent(rates['unsure']['rate'])} unsure"
        if limit["challenge_age"] is not None:
            yield f"{limit['task']} at {limit['at']:g}: challenge age {limit['challenge_age']:.1f} for {percent(limit['at_most'])}"
        few = [side for side in ("below", "above") if limit[f"probability_{'above' if side == 'below' else 'below'}"] is None]
        if few:
            counts = ", ".join(f"{limit['fitted_on'][side]} {side}" for side in few)
            limits = percent(limit["at_most"])
            yield f"{limit['task']} at {limit['at']:g}: too few validation records ({counts}) for {limits}: nobody is said to be beyond"


def _rated(rate: dict[str, Any]) -> str:
    if rate["rate"] is None:
        return "no record"
    low, high = rate["interval"]
    return f"{percent(rate['rate'])} ({100 * low:.1f} to {100 * high:.1f}; {rate['records']:,} records)"


def figures_in_words(values: dict[str, Any]) -> list[str]:
    """The figures of a task that no column is for, each with its interval: of several labels and of numbers."""
    measure, words = MEASURES.get(values.get("kind", "classification")), []
    for key, title in {}.items() if measure.confuses else measure.titles.items():
        if key in values and key != "calibration_error":
            form = percent if key in measure.shares else "{:.4g}".format
            interval = values["interval"].get(key)
            words.append(f"{title} {form(values[key])}" + (f" ({form(interval[0])} to {form(interval[1])})" if interval else ""))
    return words


def results_table(folder: Path) -> Table:
    """The test's accuracy and balanced accuracy per task, before and after where a run has both."""
    result, baselines = read_object(folder / "result.json"), read_object(folder / "baselines.json")
    before = next((row for row in read_metrics(folder / "metrics.jsonl") if row["split"] == "before"), {})
    title = f"{folder}: accuracy on the {result['split']} split, %"
    table = Table("task", "majority class", "linear on pixels", "before", "balanced", "after", "balanced", title=title)

    for name in result["test"]:
        if name.startswith("accuracy/"):
            task = name.removeprefix("accuracy/")
            row = [baselines["majority"].get(task), baselines.get("pixels", {}).get(task)]
            row += [values.get(f"{kind}/{task}") for values in (before, result["test"]) for kind in ("accuracy", "balanced_accuracy")]
            table.add_row(task, *(plain_percent(value, 1) for value in row))
    return table


def confusion_table(predictions: Predictions, task: Task) -> Table:
    """Counts, rows the labels, columns the predictions."""
    table = Table("label \\ predicted", *task.classes, title=f"{task.name}: confusion matrix")
    for name, row in zip(task.classes, task_matrix(predictions, task), strict=True):
        table.add_row(name, *map(str, row))
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def predictions_table(predictions: Predictions, title: str, most: int = 20) -> Table:
    """The predicted class of every task and its probability, for the first records."""
    table = Table("image", *(task.name for task in predictions.tasks), title=title)
    for row, _ in zip(rows_of(predictions), range(most), strict=False):
        table.add_row(
            Path(row["id"]).name, *(f"{row[task.name]} ({percent(row[f'{task.name}_probability'], 0)})" for task in predictions.tasks)
        )
    return table


def rows_of(predictions: Predictions) -> Iterator[dict[str, Any]]:
    """Per record its id and, per task, the predicted class, its probability and, where there is one, the label."""
    chances = {task.name: probabilities(predictions.logits[task.name]) for task in predictions.tasks}
    for index, name in enumerate(predictions.id):
        row: dict[str, Any] = {"id": str(name)}
        for task in predictions.tasks:
            best = int(np.argmax(chances[task.name][index]))
            label = int(predictions.labels[task.name][index])
            row[task.name] = task.classes[best]
            row[f"{task.name}_probability"] = round(float(chances[task.name][index, best]), 6)
            row[f"{task.name}_label"] = None if label == MISSING else task.classes[label]
        yield row


def write_rows(path: Path, predictions: Predictions) -> None:
    """Writes predictions as CSV, JSON lines, or Parquet with all logits, by the suffix; aside, then renamed."""
    check_output(path)
    if path.suffix == ".parquet":
        write_predictions(path, predictions)
        return
    with aside(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            names = [
                "id",
                *(name + end for name in (task.name for task in predictions.tasks) for end in ("", "_probability", "_label")),
            ]
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows_of(predictions))
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows_of(predictions))
