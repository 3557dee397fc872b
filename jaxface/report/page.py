"""The report: one self-contained HTML page that compares runs, from what their folders hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxface.errors import UserError
from jaxface.files import aside
from jaxface.report import examples, sections, views
from jaxface.report import seeds as sweep
from jaxface.report import thesis as published
from jaxface.report.markup import Cell, Html, details, join, page, section, table, tag
from jaxface.report.sections import Runs, tasks_of
from jaxface.runs.config import RANDOM
from jaxface.runs.folder import Run, read_run


def write_report(runs: Sequence[Path | str], out: Path | str) -> Path:
    """Writes a page that compares run folders, and returns its path. What a folder does not hold is left out of the page.

    Raises:
      UserError: for a folder that is no run folder, or a file in one that cannot be read.
    """
    if not runs:
        raise UserError("no run to report on; name at least one run folder")
    out = Path(out)
    content = render(named([read_run(path) for path in runs]))
    with aside(out) as temporary:
        temporary.write_text(content, encoding="utf-8")
    return out


def named(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by name; those that share one are told apart by their folder, and by a number if it is the same folder."""
    names = [run.name for run in runs]
    names = [f"{name} ({run.path})" if names.count(name) > 1 else name for name, run in zip(names, runs, strict=True)]
    return {
        name if names.index(name) == index else f"{name} #{index + 1}": run
        for index, (name, run) in enumerate(zip(names, runs, strict=True))
    }


def render(runs: Runs) -> str:
    """The whole page. A section is a function of the runs; one that finds nothing to show is left out."""
    return page(
        ", ".join(runs), _lead(runs), [(anchor, name, section(title, show(runs), anchor=anchor)) for anchor, name, title, show in SECTIONS]
    )


def _lead(runs: Runs) -> Html:
    def sentence(name: str, run: Run) -> Html:
        what = " on ".join(part for part in (run.option("method.name"), _encoder(run)) if part)
        return join([tag("strong", name), f" ({what})" if what else ""])

    return tag("p", f"{'Runs' if len(runs) > 1 else 'A run'}: ", join((sentence(*item) for item in runs.items()), ", "), ".")


def _encoder(run: Run) -> str | None:
    """What was adapted: a checkpoint knows its own shape, so the variant counts only where training began from random numbers."""
    weights = run.option("encoder.weights")
    return run.option("encoder.variant") if weights in (None, RANDOM) else str(weights)


def _setup(runs: Runs) -> Html:
    facts = {name: _facts(run) for name, run in runs.items()}
    names = dict.fromkeys(fact for values in facts.values() for fact in values)
    rows = [[fact, *(Cell(values.get(fact, "—"), class_="left wrap") for values in facts.values())] for fact in names]
    full = [
        details(f"Whole configuration of {name}", tag("pre", json.dumps(run.config, indent=2)), opened=False) for name, run in runs.items()
    ]
    return join([table(["", *(Cell(name, class_="left") for name in facts)], rows, sortable=False), *full])


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


def _notes(runs: Runs) -> Html:
    notes = []
    if any(_is_drawn(run) for run in runs.values()):
        notes.append(
            "The faces on this page are drawn by a program, not photographed. "
            "Figures on drawn faces show that training works; they say nothing about photos of people."
        )
    if set(tasks_of(runs)) & {"age", "gender", "emotion"}:
        notes.append(
            "Age, gender and emotion mean what a viewer perceives in a picture, in the classes of the labels: not a person's age in years, "
            "identity or state of mind. The models err more often on groups that their training data holds few of; look at the recall of "
            "each class, and measure on your own data before any use. They are not fit for decisions about a person."
        )
    return join(tag("div", tag("p", note), class_="note") for note in notes)


def _is_drawn(run: Run) -> bool:
    sources = set(run.predictions.source) if run.predictions is not None else set()
    return bool(run.option("data.drawn") and not run.option("data.sets")) or bool(sources & {"drawn", "synthetic"})


SECTIONS: list[tuple[str, str, str, Callable[[Runs], Html]]] = [
    ("results", "Results", "Results", sections.results),
    ("seeds", "Seeds", "Over seeds", sweep.seeds),
    ("faces", "Faces", "Predicted faces", examples.faces),
    ("classes", "Classes", "Class by class", sections.classes),
    ("training", "Training", "Training", sections.training),
    ("groups", "Groups", "Errors by group", views.groups),
    ("hardest", "Hardest", "Hardest examples", examples.hardest),
    ("features", "Features", "Features in two dimensions", views.features),
    ("cost", "Cost", "Cost and accuracy", views.cost),
    ("agreement", "Agreement", "Agreement between the models", published.agreement),
    ("published", "Published", "Beside the published figures", published.published),
    ("setup", "Setup", "What ran", _setup),
    ("notes", "Notes", "How to read this", _notes),
]
"""The page's parts, in order: anchor, short name, heading, and the function that shows runs."""
