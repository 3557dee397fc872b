"""`python -m jaxface.report RUN... [--out report.html]`: one self-contained HTML page that compares runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from jaxface.cli import parse
from jaxface.errors import run_command
from jaxface.ranges import Items, Where, ranged


@ranged()
class Options:
    """Compares runs on one HTML page that needs no network.

    Attributes:
      runs: run folders, or folders of them.
      out: the page to write.
    """

    runs: Annotated[tuple[Where, ...], Items(least=1), tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    out: Where = Path("report.html")


def main() -> None:
    """The command."""
    options = parse(Options, prog="python -m jaxface.report")
    from jaxface.report.page import write_report  # slow to import: not for --help

    print(f"wrote {write_report(options.runs, options.out)}")


if __name__ == "__main__":
    run_command(main)
