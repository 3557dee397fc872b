"""python -m jaxface.assemble RUN... --out RUN: runs of one task each, LP or AP, as one model of all their tasks."""

from __future__ import annotations

from typing import Annotated

import tyro

from jaxface.cli import parse
from jaxface.errors import run_command
from jaxface.ranges import Items, Where, ranged


@ranged()
class Options:
    """Puts the heads (for AP the attention pools, too) of single-task runs on the one encoder that they share.

    Attributes:
      runs: run folders, or folders of them.
      out: the run folder to write.
    """

    runs: Annotated[tuple[Where, ...], Items(least=1), tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    out: Where


def main() -> None:
    """Assembles and prints what came out."""
    options = parse(Options, prog="python -m jaxface.assemble", description=__doc__)
    from jaxface.runs.assemble import assemble
    from jaxface.runs.folder import find_runs

    config = assemble(find_runs(options.runs)[0], options.out)
    print(f"wrote {options.out}: {config.method.name} for {', '.join(config.tasks)}")


if __name__ == "__main__":
    run_command(main)
