"""The thesis's tables, 4.1 to 4.16, as printed, with our runs below, and where the printed figures contradict each other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from jaxface.data.tasks import known
from jaxface.evaluation import metrics
from jaxface.evaluation.measures import measure_of
from jaxface.evaluation.metrics import TEST_SETS
from jaxface.evaluation.predictions import Predictions
from jaxface.report import thesis_tables
from jaxface.report.markup import Cell, left, percent, render, strong
from jaxface.report.sections.base import Runs, settings
from jaxface.report.thesis_tables import Table, format_figure
from jaxface.runs.folder import Run

Values = Mapping[str, float]
"""Our figures of a run by the name of a printed column, in the unit of the print."""

MODELS = {"zero_shot": "ZS", "lp": "LP", "ap": "AP", "ft4": "FT4", "lora": "LoRA", "dora": "DoRA", "mtlora": "MTLoRA"}
"""What the thesis calls our methods."""


def model_of(run: Run) -> str:
    """A run's model as the thesis names it: its method, and how several losses were balanced if not by their uncertainty."""
    method, balancing = str(run.option("method.name") or ""), str(run.option("balancing", "uw"))
    trained_jointly = len(run.tasks) > 1 and method != "zero_shot"
    return MODELS.get(method, method) + (f" {balancing.upper()}" if trained_jointly and not balancing.startswith("uw") else "")


def our_values(run: Run) -> Values:
    """A run's figures on the thesis's test sets, its means where it was tested on all sets of a task, and what it costs."""
    values: dict[str, float] = {}
    if (predictions := run.predictions) is None:
        return {}
    for task in (task for task in run.tasks if measure_of(task).confuses):
        for source, matrix in metrics.source_matrices(predictions, task).items():
            if (key := metrics.source_key(source)) in TEST_SETS.get(task.name, ()):
                values[f"{task.name}/{key}"] = 100 * float(metrics.accuracy(matrix))
                values[f"balanced/{task.name}/{key}"] = 100 * float(metrics.balanced_accuracy(matrix))
    return {**with_averages(values), **(_costs(run) if values else {})}


def with_averages(values: Values) -> dict[str, float]:
    """The figures, and the means of those tasks whose every set in the average is there; of all tasks, the overall mean."""
    averages: dict[str, float] = {}
    for task, sources in TEST_SETS.items():
        own = {source: values[f"{task}/{source}"] for source in metrics.averaged_sources(task, sources) if f"{task}/{source}" in values}
        if own and set(own) == set(metrics.averaged_sources(task, sources)):
            averages[f"{task}/average"] = metrics.average_over_sources(task, own)
    whole = {"overall": metrics.overall(averages)} if len(averages) == len(TEST_SETS) else {}
    return {**values, **averages, **whole}


def _costs(run: Run) -> Values:
    parameters, gflops = (run.summary.get(key) or {} for key in ("parameters", "gflops"))
    total = parameters.get("inference", 0)
    found = {
        "parameters/text": parameters.get("text tower", 0),
        "parameters/vision": parameters.get("vision tower", 0),
        "parameters/total": total,
        "parameters/millions": total / 1e6,
        "gflops": gflops.get("linear") or gflops.get("all products", 0),
    }
    return {name: value for name, value in found.items() if value}


def together(runs: Runs) -> dict[str, tuple[str, Values]]:
    """Runs of one task each that differ in nothing but their task, as one model: its name, and the figures of all, with their means."""
    alike: dict[str, dict[str, Run]] = {}
    for name, run in runs.items():
        if len(run.tasks) == 1:
            alike.setdefault(settings(run, besides=("tasks", "losses")), {})[name] = run
    found = {}
    for members in alike.values():
        tasks = [run.tasks[0].name for run in members.values()]
        if len(members) > 1 and len(set(tasks)) == len(tasks):
            name = os.path.commonpath(members) or ", ".join(members)
            own = [our_values(run) for run in members.values()]
            values = {key: value for one in own for key, value in one.items() if key.startswith((*TEST_SETS, "balanced"))}
            found[name] = model_of(next(iter(members.values()))), with_averages(values)
    return found


def pairs(runs: Runs) -> Iterator[tuple[str, str, str, str, float, int]]:
    """Per pair of runs, task and data set the share of test records that both put in the same class, and how many records both saw."""
    answered = [(name, run.predictions) for name, run in runs.items() if run.predictions is not None]
    for index, (first, ours) in enumerate(answered):
        for second, theirs in answered[index + 1 :]:
            rows = _shared_rows(ours, theirs)
            for kind in [task for task in ours.tasks if task in theirs.tasks]:
                task = kind.name
                same = kind.of.right(kind, ours.logits[task][rows[:, 0]], theirs.predicted(task)[rows[:, 1]])
                labelled = known(ours.labels[task][rows[:, 0]])
                sources = ours.source[rows[:, 0]]
                for source in sorted(set(sources)):
                    of_it = sources == source
                    chosen = of_it & labelled if (of_it & labelled).any() else of_it
                    yield first, second, task, source, float(same[chosen].mean()), int(chosen.sum())


def _shared_rows(ours: Predictions, theirs: Predictions) -> np.ndarray:
    """Rows `[K, 2]` of the records that both hold: the same data set and id."""
    places = {key: row for row, key in enumerate(zip(theirs.source, theirs.id, strict=True))}
    found = ((row, places[key]) for row, key in enumerate(zip(ours.source, ours.id, strict=True)) if key in places)
    return np.array(list(found), int).reshape(-1, 2)


def agreement(runs: Runs) -> Markup:
    """How often two runs answer the same, per task and data set."""
    rows = [
        [f"{first} and {second}", left(task), left(source), Cell(percent(share), bar=share), f"{count:,}"]
        for first, second, task, source, share, count in pairs(runs)
    ]
    header = ["models", left("task"), left("data set"), "agreement", "records"]
    return render("agreement.html", header=header, rows=rows) if rows else Markup()


def published(runs: Runs) -> Markup:
    """Every printed table, with the rows of the runs that have figures for it below the printed ones."""
    ours = [(name, model_of(run), len(run.tasks), our_values(run)) for name, run in runs.items()]
    several = [(name, model, 1, values) for name, (model, values) in together(runs).items()]
    agreements = list(_agreements(runs))
    averaged = [row for row in ours if row[2] > 1] + several  # a mean over the tasks is one of several runs of a task each
    shown = [
        _table(printed, averaged if several and "overall" in printed.columns else ours, agreements) for printed in thesis_tables.THESIS
    ]
    return render("thesis.html", tables=shown, tested=any(values for *_, values in ours), contradictions=thesis_tables.contradictions())


def _table(
    printed: Table, ours: Sequence[tuple[str, str, int, Values]], agreements: Sequence[tuple[str, str, Values]]
) -> dict[str, object]:
    starred = {(entry.model, entry.column) for entry in thesis_tables.contradictions() if entry.table == printed.number}
    rows: list[list[object]] = []
    for model, name in printed.models.items():
        cells = zip(printed.columns, printed.rows[name], strict=True)
        rows.append([name, *(format_figure(value) + "*" * ((model, column) in starred) for column, value in cells)])
    if printed.columns[0].startswith("agreement/"):
        own = [(name, model, values) for name, model, values in agreements if model in printed.models]
    else:
        own = [(name, model, values) for name, model, tasks, values in ours if _belongs(printed, model, tasks)]
    for name, model, values in own:
        if set(values) & set(printed.columns):
            figures = [format_figure(values[column]) if column in values else "—" for column in printed.columns]
            rows.append([strong(f"{model}: {name}"), *map(strong, figures)])
    header = ["model", *map(_heading, printed.columns)]
    return {"number": printed.number, "title": printed.title, "header": header, "rows": rows, "notes": printed.notes}


def _belongs(printed: Table, model: str, tasks: int) -> bool:
    """Whether a run of that many tasks is of the table's kind: a model that trained nothing is wherever it is printed."""
    if model == MODELS["zero_shot"]:
        return model in printed.models
    return printed.setting in ("", "single" if tasks == 1 else "multi") and (model in printed.models or not printed.only)


def _agreements(runs: Runs) -> Iterator[tuple[str, str, Values]]:
    """Per pair of multi-task runs its name, its models in the order of the thesis's table, and its agreement on each set."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for first, second, task, source, share, _ in pairs(runs):
        if min(len(runs[first].tasks), len(runs[second].tasks)) > 1:
            found.setdefault((first, second), {})[f"agreement/{task}/{metrics.source_key(source)}"] = 100 * share
    order = ["LP", "DoRA"]
    for names, values in found.items():
        models = {name: model_of(runs[name]) for name in names}
        first, second = sorted(names, key=lambda name: order.index(models[name]) if models[name] in order else len(order))
        yield f"{first} and {second}", f"{models[first]} and {models[second]}", values


def _heading(column: str) -> str:
    return column.replace("/", ", ").replace("agreement, ", "")


def printed_costs() -> Sequence[tuple[Any, ...]]:
    """Model, parameters in millions, GFLOPs and overall accuracy in percent of Table 4.14."""
    (entry,) = (entry for entry in thesis_tables.THESIS if entry.number == "4.14")
    return [(name, *(entry.value(model, column) for column in entry.columns)) for model, name in entry.models.items()]
