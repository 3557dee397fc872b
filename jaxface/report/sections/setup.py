"""What ran: the runs in a sentence, their settings side by side, and how to read the page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import numpy as np
from markupsafe import Markup

from jaxface.report.markup import Cell, left, render
from jaxface.report.sections.base import Runs, tasks_of
from jaxface.runs.config import RANDOM
from jaxface.runs.folder import Run


def lead(runs: Runs) -> Markup:
    """The runs in a sentence: what was done to which encoder."""
    whats = {name: " on ".join(part for part in (run.option("method.name"), _encoder(run)) if part) for name, run in runs.items()}
    return render("lead.html", runs=whats)


def _encoder(run: Run) -> str | None:
    """What was adapted: a checkpoint knows its own shape, so the variant counts only where training began from random numbers."""
    weights = run.option("encoder.weights")
    return run.option("encoder.variant") if weights in (None, RANDOM) else str(weights)


def setup(runs: Runs) -> Markup:
    """The settings and costs of the runs side by side, and their whole configurations."""
    facts = {name: _facts(run) for name, run in runs.items()}
    names = dict.fromkeys(fact for values in facts.values() for fact in values)
    rows = [[fact, *(Cell(values.get(fact, "—"), class_="left wrap") for values in facts.values())] for fact in names]
    full = {name: json.dumps(run.config, indent=2) for name, run in runs.items()}
    return render("setup.html", header=["", *map(left, facts)], rows=rows, configurations=full)


def _facts(run: Run) -> dict[str, str]:
    drawn = run.option("data.drawn") or {}
    facts = {
        "method": run.option("method.name"),
        "encoder": _encoder(run),
        "begins from": "random numbers" if run.option("encoder.weights") == RANDOM else "a checkpoint or run",
        "tasks": ", ".join(task.name for task in run.tasks),
        "data": ", ".join(run.option("data.sets") or ()) or (f"drawn faces, style {drawn.get('style')}" if drawn else None),
        "loss balancing": run.option("balancing"),
        "batch size": run.option("batch_size"),
        "seed": run.option("seed"),
    }
    if run.rows:
        steps = [row["step"] for row in run.rows]
        seconds = max((row.get("time") or 0 for row in run.rows), default=0)
        rates = run.series("train", "images_per_second")[1]
        facts |= {
            "steps": f"{max(steps):,.0f}",
            "epochs": next((str(row["epoch"]) for row in reversed(run.rows) if row.get("epoch") is not None), None),
            "time": f"{seconds // 60:.0f} min {seconds % 60:.0f} s" if seconds else None,
            "training images a second": f"{np.median(rates):,.0f}" if len(rates) else None,
        }
    facts |= dict(_flat(run.summary))
    return {name: str(value) for name, value in facts.items() if value not in (None, "", "None")}


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}: ")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
        elif isinstance(value, str):
            yield name, value


def notes(runs: Runs) -> Markup:
    """What the figures mean and do not mean."""
    drawn = any(map(_is_drawn, runs.values()))
    return render("notes.html", drawn=drawn, perceived=bool(set(tasks_of(runs)) & {"age", "gender", "emotion"}))


def _is_drawn(run: Run) -> bool:
    sources = set(run.predictions.source) if run.predictions is not None else set()
    return bool(run.option("data.drawn") and not run.option("data.sets")) or bool(sources & {"drawn", "synthetic"})
