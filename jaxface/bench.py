"""python -m jaxface.bench NAME [options]: benchmarks, interleaved, medians, ratios. `NAME --help` says what one can be told."""

from __future__ import annotations

import importlib
import os
import sys

from jaxface.benchmarks import BENCHMARKS
from jaxface.errors import run_command


def main() -> int | None:
    """Runs the named benchmark with the arguments behind its name."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{__doc__}\nbenchmarks: {', '.join(BENCHMARKS)}")
        return 0 if arguments else 2
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a benchmark's processes share a card
    return importlib.import_module(f"jaxface.benchmarks.{BENCHMARKS.get(arguments[0])}").main(arguments[1:])


if __name__ == "__main__":
    from jaxface.large_pages import use_large_pages

    use_large_pages()
    run_command(main)
