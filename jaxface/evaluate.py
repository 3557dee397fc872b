"""python -m jaxface.evaluate RUN: tests a run's model, and says how far its figures can be trusted and whom it fails."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from jaxface.cli import parse
from jaxface.errors import UserError, run_command


@dataclass(frozen=True)
class Options:
    """Tests a run's model on prepared data. Writes predictions.parquet, evaluation.json and figures/ into the run folder.

    Attributes:
      run: a run folder.
      data: folders written by `jaxface.prepare`; the run's own sets if none is named.
      split: of them; test where they have one.
      features: keep the encoder's features, also those before training, for the report's PCA and t-SNE.
      groups: further groups of records: FILE.csv:COLUMN (or FILE.csv:COLUMN:ID_COLUMN), such as FairFace's race.
      recompute: compute all figures again from predictions.parquet; no model is loaded.
      batch_size: over all local devices.
      out: another folder to write into.
      json: print the figures as JSON.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    data: tuple[Path, ...] = ()
    split: str | None = None
    features: bool = False
    groups: tuple[Path, ...] = ()
    recompute: bool = False
    batch_size: int = 64
    out: Path | None = None
    json: bool = False


def sources_table(scores: dict[str, Any], title: str) -> Table:
    """Accuracy and its interval per task and data set, with the thesis's averages."""
    table = Table("task", "data set", "records", "accuracy, %", "95 % interval", "balanced, %", "macro F1, %", "within one, %", title=title)
    for column in table.columns[2:]:
        column.justify = "right"

    def percent(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.2f}"

    for task, values in scores["tasks"].items():
        interval = " to ".join(map(percent, values["interval"]["accuracy"]))
        whole = {f"all ({len(values['sources'])})" if len(values["sources"]) > 1 else next(iter(values["sources"])): (values, interval)}
        parts = {source: (own, "") for source, own in values["sources"].items()} if len(values["sources"]) > 1 else {}
        for source, (own, interval) in {**parts, **whole}.items():
            figures = [percent(own.get(name)) for name in ("balanced_accuracy", "macro_f1", "off_by_one")]
            table.add_row(task, source, f"{own['count']:,.0f}", percent(own["accuracy"]), interval, *figures)
        if parts:
            over = " + ".join(values["averaged_over"])
            table.add_row(task, f"average: {over or 'none'}", "", percent(values.get("average_accuracy")), end_section=True)
    table.add_row("overall", "mean of the averages", "", percent(scores["summary"].get("overall_accuracy")))
    return table


def show(scores: dict[str, Any], title: str, console: Console) -> None:
    """Prints figures, calibration, and the largest disparities."""
    console.print(sources_table(scores, title))
    for task, values in scores["tasks"].items():
        fit = values["calibration"]
        after = "" if fit["temperature"] is None else f", {100 * fit['error_calibrated']:.1f} % at temperature {fit['temperature']:.2f}"
        console.print(f"{task}: calibration error {100 * fit['error']:.1f} %{after}")
    certain = [entry["says"] for entry in scores["disparities"] if entry["certain"]]
    for sentence in certain[:10]:
        console.print(f"disparity: {sentence}")
    if not certain:
        console.print("disparities: none between groups of 30 or more whose 95 % intervals do not overlap")


def main() -> None:
    """Tests, writes and prints."""
    options = parse(Options, prog="python -m jaxface.evaluate")
    if options.batch_size <= 0:
        raise UserError(f"batch_size {options.batch_size}: expected more than 0")
    from jaxface.report.pictures import write_pictures  # slow to import: not for --help
    from jaxface.runs.evaluate import evaluate_again, evaluate_run

    if options.recompute:
        predictions, scores = evaluate_again(options.out or options.run, options.groups)
    else:
        predictions, scores = evaluate_run(
            options.run,
            tuple(map(str, options.data)),
            options.split,
            out=options.out,
            batch_size=options.batch_size,
            features=options.features,
            groups=options.groups,
        )
    temperatures = {task: values["calibration"]["temperature"] for task, values in scores["tasks"].items()}
    fitted = {task: value for task, value in temperatures.items() if value is not None}
    write_pictures((options.out or options.run) / "figures", predictions, fitted)
    if options.json:
        print(json.dumps(scores))
        return
    show(scores, f"{options.run}: {scores['about'].get('split', '')}", Console(width=None if sys.stdout.isatty() else 120))
    print(f"wrote {(options.out or options.run) / 'evaluation.json'}")


if __name__ == "__main__":
    run_command(main)
