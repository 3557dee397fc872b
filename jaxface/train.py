"""python -m jaxface.train: trains a model; with nothing given, the quickstart."""

from __future__ import annotations

import signal
import sys
from collections.abc import Collection
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from jaxface.errors import run_command
from jaxface.large_pages import use_large_pages

if TYPE_CHECKING:
    from jaxface.runs.config import Config


def train(config: Config, given: Collection[str] = ()) -> list[Path]:
    """Trains the runs that the configuration stands for and, first, the one that they start from. Returns their folders in that order.

    Args:
      given: names of options that are refused where they have no effect on any of the runs; others are told.
    """
    from jaxface.kernels.attention import require_kernel  # slow to import: not for --help
    from jaxface.kernels.operations import kernel_choice
    from jaxface.runs.idle_options import idle_options, of_model, refuse_or_tell
    from jaxface.runs.sweep import members
    from jaxface.training.capacity import settle_batch_size
    from jaxface.training.loop import Run

    runs = members(config)
    idle = [idle_options(run) for run in runs]
    for run, own in zip(runs, idle, strict=True):
        refuse_or_tell(run, own, given_for(config, run, [name for name in given if all(name in other for other in idle)]))
        require_kernel(run.encoder.attention)  # before the run to start from takes its time
        kernel_choice(run.encoder.kernels)
    folders = [] if config.after is None else train(config.after)
    for run in runs:
        run = settle_batch_size(run)
        print(f"{run.folder}: {run.method.name} for {', '.join(run.tasks)}", file=sys.stderr)
        made = Run(run)
        if not made.finished:
            alike = all(other.method == run.method for other in runs)
            refuse_or_tell(run, of_model(made.config, made.parts), given_for(config, run, given if alike else ()))
        folders.append(made.run())
    return folders


def given_for(config: Config, run: Config, given: Collection[str]) -> set[str]:
    """Names of options that were given for one of a configuration's runs: these, and the axes of the grid.

    A run that has begun goes on with all that it began with.
    """
    return set() if (run.folder / "config.json").exists() else {*given, *(axis.partition("=")[0].replace("-", "_") for axis in config.grid)}


def show(config: Config, folders: list[Path]) -> None:
    """Prints what came out, and writes the report if the configuration asks for it."""
    from rich.console import Console

    from jaxface.report.console import results_table
    from jaxface.report.seeds import sweep_table
    from jaxface.runs.folder import read_run

    console = Console()
    for folder in folders:
        console.print(results_table(folder))
    sweep = sweep_table([read_run(folder) for folder in folders])
    if sweep is not None:
        console.print(sweep)
    if config.report:
        from jaxface.report.page import write_report

        one = len(folders) == 1 or config.seeds or config.grid
        page = write_report(folders, (config.folder if one else config.folder.parent) / "report.html")
        console.print(f"report: {page}")


def main() -> int:
    """Trains and prints what came out."""
    from jaxface.cli import given_options
    from jaxface.runs.command_line import read_command_lines  # slow to import: not before the command is started again with large pages

    configs = read_command_lines(sys.argv[1:])
    given = given_options(sys.argv[1:]) if len(configs) == 1 else set[str]()
    signal.signal(signal.SIGTERM, _stop_early)  # a run takes it over from its first step on
    from jaxface.cluster import connect, is_first
    from jaxface.training.stopping import Stopped

    connect(configs[0].cluster)
    try:
        folders = [train(config, given) for config in configs]
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 0 if stopped.signal == signal.SIGTERM else 130
    if is_first():
        for config, own in zip(configs, folders, strict=True):
            show(config, own)
    return 0


def _stop_early(number: int, frame: FrameType | None) -> None:
    print("stopped while getting ready, nothing is lost: the same command starts again", file=sys.stderr)
    raise SystemExit(0)


if __name__ == "__main__":
    use_large_pages()
    run_command(main)
