"""`python -m jaxface.report RUN... [--out report.html]`: one self-contained HTML page that compares runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from jaxface.errors import run_command
from jaxface.evaluation.page import write_report


def report(runs: Annotated[tuple[Path, ...], tyro.conf.Positional], /, out: Path = Path("report.html")) -> None:
    """Compares runs on one HTML page that needs no network.

    Args:
      runs: run folders.
      out: the page to write.
    """
    write_report(runs, out)
    print(f"wrote {out}")


def main() -> None:
    """The command."""
    tyro.cli(report, prog="python -m jaxface.report")


if __name__ == "__main__":
    run_command(main)
