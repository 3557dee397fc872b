"""python -m jaxface.evaluate RUN: tests a run's model, and says how far its figures can be trusted and whom it fails."""

from __future__ import annotations

import sys
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from jaxface.cli import parse
from jaxface.compiled import use_compiled_programs
from jaxface.data.records import SPLITS
from jaxface.errors import UserError, run_command, tell
from jaxface.evaluation.trust import Caution
from jaxface.files import alone_in, to_json
from jaxface.prediction import engines
from jaxface.ranges import Count, Items, OneOf, Range, Share, Where, Word, ranged, refuse_idle


@ranged()
class Options:
    """Tests models of runs on prepared data. Writes predictions.parquet, evaluation.json and figures/ into each run folder.

    Attributes:
      runs: run folders, or folders of them; of several, those that are tested already on the same records are not tested again.
      predictions: answers of any models in tables (CSV, Parquet) or JSON lines, a file each: an id or path in each row, the answer to a
        task in a column of its name, its label in TASK_label or in --data. Each gets a folder in --out; a page compares all, and the runs.
      columns: of these files, what is called otherwise: NAME=COLUMN.
      tasks_file: a file of one's own tasks that they answer.
      data: folders written by `jaxface.prepare`; the run's own sets if none is named.
      split: of them; test where they have one.
      features: keep the encoder's features, also those before training, for the report's PCA and t-SNE.
      groups: further groups of records: FILE.csv:COLUMN (or FILE.csv:COLUMN:ID_COLUMN), such as FairFace's race.
      recompute: compute all figures again from predictions.parquet; no model is loaded.
      batch_size: over all local devices.
      workers: processes that decode images, as far as the work is worth it; 0 does it in threads of this one.
      out: another folder to write into; of one run.
      json: print the figures as JSON.
      weights: where a run's base weights are, if not where they were; known by their hash.
      engine: what computes the model, as of `jaxface.predict`.
      trust: how sure answers have to be.
      most_loss: the share of faces that "auto" may have in another class than jax, as the export measured it.
    """

    runs: Annotated[tuple[Where, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")] = ()
    predictions: Annotated[tuple[Where, ...], Items(once=True)] = ()
    columns: Annotated[tuple[str, ...], Word(r"[^=]+=[^=]+", "NAME=COLUMN, as in age=pred_age"), Items(once=True)] = ()
    tasks_file: Where | None = None
    data: Annotated[tuple[Where, ...], Items(once=True)] = ()
    split: Annotated[str | None, OneOf("split", SPLITS)] = None
    features: bool = False
    groups: tuple[Where, ...] = ()
    recompute: bool = False
    batch_size: Count = 64
    workers: Annotated[int, Range(0, 1024)] = 0
    out: Where | None = None
    json: bool = False
    weights: tuple[Where, ...] = ()
    engine: engines.Name = engines.DEFAULT
    most_loss: Share = 0.01
    trust: tyro.conf.OmitArgPrefixes[Caution] = field(default_factory=Caution)

    def __post_init__(self) -> None:
        if not self.runs and not self.predictions:
            raise UserError("name a run folder, or --predictions FILE")
        refuse_idle(self, bool(self.predictions), "it is about the files of --predictions", "columns", "tasks_file")
        named = [word.partition("=")[0] for word in self.columns]
        if len(set(named)) < len(named):
            raise UserError(f"columns {' '.join(self.columns)}: name each once")
        computed = ("features", "batch_size", "workers", "weights", "engine", "most_loss")
        refuse_idle(self, not self.predictions, "models of runs are computed, not --predictions", *computed, "recompute")
        refuse_idle(self.trust, not self.predictions, "it is for runs, not --predictions")
        refuse_idle(self, bool(self.data or not self.predictions), "the labels of --predictions come from no --data", "split")
        refuse_idle(self, not self.recompute, "no model is computed with --recompute", *computed, "data", "split")
        refuse_idle(self, self.engine == engines.AUTO, "it is for --engine auto", "most_loss")


def main() -> None:
    """Tests, writes and prints."""
    options = parse(Options, prog="python -m jaxface.evaluate")
    if options.predictions:
        return compare(options)
    from jaxface.runs.evaluate_run import evaluated_runs

    if len(options.runs) == 1 and not options.runs[0].is_dir():
        raise UserError(f"{options.runs[0]} is not a run folder: there is no such folder")
    runs, others = (options.runs, []) if options.recompute else evaluated_runs(options.runs)
    if others:
        tell(f"passed over, no trained model: {', '.join(map(str, others))}")
    if options.out is not None and len(runs) > 1:
        raise UserError(f"--out {options.out}: {len(runs)} runs cannot write into one folder")
    for run in runs:
        evaluate(run, options, alone=len(runs) == 1)


def evaluate(run: Path, options: Options, *, alone: bool) -> None:
    """One run. With others beside it, nothing is computed again that stands."""
    from jaxface.report.console import show_scores  # slow to import: not for --help
    from jaxface.report.pictures import write_pictures
    from jaxface.runs.evaluate_run import evaluate_again, evaluate_run

    with alone_in(options.out or run):
        if options.recompute:
            predictions, scores = evaluate_again(options.out or run, options.groups, options.trust)
        else:
            predictions, scores = evaluate_run(
                run,
                tuple(map(str, options.data)),
                options.split,
                out=options.out,
                batch_size=options.batch_size,
                workers=options.workers,
                features=options.features,
                groups=options.groups,
                keep=not alone,
                weights=options.weights,
                engine=None if options.engine == engines.DEFAULT else opened(run, options),
                caution=options.trust,
            )
        temperatures = {task: values["calibration"]["temperature"] for task, values in scores["tasks"].items()}
        fitted = {task: value for task, value in temperatures.items() if value is not None}
        write_pictures((options.out or run) / "figures", predictions, fitted)
    if options.json:
        print(to_json(scores))
        return
    show_scores(scores, f"{run}: {scores['about'].get('split', '')}", Console(width=None if sys.stdout.isatty() else 120))
    print(f"wrote {(options.out or run) / 'evaluation.json'}")


def compare(options: Options) -> None:
    """Answers of any models, each in a folder of its own, and a page of them all beside the runs."""
    from jaxface.report.console import show_scores
    from jaxface.report.page import write_report
    from jaxface.runs.foreign_answers import Told
    from jaxface.runs.foreign_folder import evaluate_foreign

    out = options.out or options.predictions[0].parent / "comparison"
    names = [path.stem for path in options.predictions]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"--predictions: two files are called {twice[0]}: each needs a name of its own")
    columns = {name: column for name, _, column in (word.partition("=") for word in options.columns)}
    told = Told(columns, options.tasks_file, several=len(options.predictions) > 1)
    for path in options.predictions:
        with alone_in(out / path.stem):
            _, scores = evaluate_foreign(path, out / path.stem, told, tuple(map(str, options.data)), options.split, options.groups)
        if options.json:
            print(to_json(scores))
        else:
            show_scores(scores, str(path), Console(width=None if sys.stdout.isatty() else 120))
    page = write_report([*options.runs, *(out / name for name in names)], out / "report.html")
    tell(f"wrote {page}")


def opened(run: Path, options: Options) -> tuple[str, Any] | None:
    """The engine that is asked for; None for JAX, as evaluation has it."""
    from jaxface.runs.best import model_digest

    name, model = engines.open_engine(options.engine, engines.Place(run, model_digest(run), options.weights), options.most_loss)
    return None if name == engines.DEFAULT else (name, model)


if __name__ == "__main__":
    use_compiled_programs()
    run_command(main)
