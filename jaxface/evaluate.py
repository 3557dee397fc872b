"""python -m jaxface.evaluate RUN: tests a run's model, and says how far its figures can be trusted and whom it fails."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

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


def main() -> None:
    """Tests, writes and prints."""
    options = parse(Options, prog="python -m jaxface.evaluate")
    if options.batch_size <= 0:
        raise UserError(f"batch_size {options.batch_size}: expected more than 0")
    from jaxface.report.console import show_scores  # slow to import: not for --help
    from jaxface.report.pictures import write_pictures
    from jaxface.runs.evaluate_run import evaluate_again, evaluate_run

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
    show_scores(scores, f"{options.run}: {scores['about'].get('split', '')}", Console(width=None if sys.stdout.isatty() else 120))
    print(f"wrote {(options.out or options.run) / 'evaluation.json'}")


if __name__ == "__main__":
    run_command(main)
