"""The thesis's tables, 4.1 to 4.16, as printed, with our runs below, and where the printed figures contradict each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jaxface.evaluation import metrics
from jaxface.report import thesis_tables as tables
from jaxface.report.markup import Cell, Html, details, join, percent, table, tag
from jaxface.report.sections import Runs
from jaxface.report.thesis_tables import Table
from jaxface.runs.folder import Run

Values = Mapping[str, float]
"""Our figures of a run by the name of a printed column, in the unit of the print."""


def thesis_source(source: str) -> str:
    """A source's name as the tables have it: small letters and digits only."""
    return "".join(letter for letter in source.lower() if letter.isalnum())


def our_values(run: Run) -> Values:
    """A run's figures on the thesis's test sets, its means where it was tested on all sets of a task, and what it costs."""
    values: dict[str, float] = {}
    for task in run.tasks if run.predictions is not None else ():
        known = tables.SOURCES.get(task.name, ())
        found = {thesis_source(source): value for source, value in metrics.source_accuracies(run.predictions, task).items()}
        own = {source: found[source] for source in known if source in found}
        values |= {f"{task.name}/{source}": 100 * value for source, value in own.items()}
        left_out = metrics.ESTIMATED_LABELS.get(task.name, ())
        if own and set(known) - set(left_out) <= set(own):
            values[f"{task.name}/average"] = 100 * metrics.average_over_sources(own, left_out)
    averages = {task: values[f"{task}/average"] for task in tables.SOURCES if f"{task}/average" in values}
    if len(averages) == len(tables.SOURCES):
        values["overall"] = metrics.overall(averages)
    return values | (_costs(run) if values else {})


def _costs(run: Run) -> Values:
    parameters, gflops = (run.summary.get(key) or {} for key in ("parameters", "gflops"))
    found = {"parameters/millions": parameters.get("inference", 0) / 1e6, "gflops": gflops.get("linear") or gflops.get("all products", 0)}
    return {name: value for name, value in found.items() if value}


def pairs(runs: Runs) -> dict[tuple[str, str], dict[str, tuple[float, int]]]:
    """Per pair of runs and task the share of test records that both put in the same class, and how many records both saw."""
    answered = [(name, run.predictions) for name, run in runs.items() if run.predictions is not None]
    found: dict[tuple[str, str], dict[str, tuple[float, int]]] = {}
    for index, (first, ours) in enumerate(answered):
        for second, theirs in answered[index + 1 :]:
            places = {record: row for row, record in enumerate(theirs.id)}
            rows = np.array([(row, places[record]) for row, record in enumerate(ours.id) if record in places], int).reshape(-1, 2)
            shared = [task.name for task in ours.tasks if task in theirs.tasks] if len(rows) else []
            for task in shared:
                share = metrics.agreement(ours.predicted(task)[rows[:, 0]], theirs.predicted(task)[rows[:, 1]])
                found.setdefault((first, second), {})[task] = share, len(rows)
    return found


def agreement(runs: Runs) -> Html:
    rows = [
        [f"{first} and {second}", Cell(task, class_="left"), Cell(percent(share), bar=share), f"{count:,}"]
        for (first, second), tasks in pairs(runs).items()
        for task, (share, count) in tasks.items()
    ]
    text = "Share of test records that two models put in the same class, right or wrong."
    return join([tag("p", text), table(["models", Cell("task", class_="left"), "agreement", "records"], rows)]) if rows else Html()


def published(runs: Runs) -> Html:
    """Every printed table, those that a run has figures for opened, with the run's row below the printed ones."""
    ours = {name: our_values(run) for name, run in runs.items()}
    parts = [_table(printed, runs, ours) for printed in tables.THESIS]
    found = [tag("li", str(entry)) for entry in tables.contradictions()]
    if any(ours.values()):
        text = (
            "The tables of the thesis (A. Sessa, University of Salerno, 2025) as printed, and the runs of this page below. Comparable only "
            "if the test records are the same: the official test splits, with the same faces found. A star marks a printed figure that "
            "contradicts another one."
        )
    else:
        text = (
            "The tables of the thesis (A. Sessa, University of Salerno, 2025) as printed. No run of this page was tested on its test sets "
            "(RAF-DB, FairFace, UTKFace, VGGFace2), so none stands beside them. A star marks a printed figure that contradicts another one."
        )
    contradicting = details(f"{len(found)} printed figures contradict others", tag("ul", *found))
    if any(ours.values()):
        return join([tag("p", text), *parts, contradicting])
    return join([tag("p", text), details("Tables 4.1 to 4.16", *parts), contradicting])


def _table(printed: Table, runs: Runs, ours: Mapping[str, Values]) -> Html:
    starred = {(entry.model, entry.column) for entry in tables.contradictions() if entry.table == printed.number}
    header = ["model", *map(_heading, printed.columns)]
    rows: list[list[object]] = []
    for model, values in printed.rows.items():
        marks = ["*" if (model, column) in starred else "" for column in printed.columns]
        cells = ["—" if value is None else tables.format_figure(value) + mark for value, mark in zip(values, marks, strict=True)]
        rows.append([model, *cells])
    own = {
        name: values
        for name, values in ours.items()
        if set(values) & set(printed.columns) and printed.setting in ("", "single" if len(runs[name].tasks) == 1 else "multi")
    }
    own |= _agreements(printed, runs)
    for name, values in own.items():
        rows.append([Cell(name, class_="strong"), *(Cell(_figure(values.get(column)), class_="strong") for column in printed.columns)])
    number = printed.number if printed.number.startswith("section") else f"Table {printed.number}"
    return join([tag("h3", f"{number[0].upper()}{number[1:]}: {printed.title}"), table(header, rows)])


def _agreements(printed: Table, runs: Runs) -> dict[str, Values]:
    """Rows of the table of agreements: per pair of runs, where both were tested on one of its sets alone."""
    if not printed.columns[0].startswith("agreement/"):
        return {}
    rows: dict[str, Values] = {}
    for (first, second), tasks in pairs(runs).items():
        sources = {thesis_source(source) for name in (first, second) for source in runs[name].predictions.source}
        if len(sources) == 1:
            columns = {f"agreement/{task}/{next(iter(sources))}": 100 * share for task, (share, _) in tasks.items()}
            if set(columns) & set(printed.columns):
                rows[f"{first} and {second}"] = columns
    return rows


def _heading(column: str) -> str:
    return column.replace("/", ", ").replace("agreement, ", "")


def _figure(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}"


def printed_costs() -> Sequence[tuple[str, float, float, float]]:
    """Model, parameters in millions, GFLOPs and overall accuracy in percent of Table 4.14."""
    (entry,) = (entry for entry in tables.THESIS if entry.number == "4.14")
    return [(model, *values) for model, values in entry.rows.items()]
