"""python -m jaxface.bench memory: what remat and a quantised base save of a step's memory, and what they cost of its time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table

from jaxface.adapters.methods import METHODS
from jaxface.adapters.options import Rank
from jaxface.adapters.quantized import FORMATS, FULL
from jaxface.benchmarks._options import Timed, print_json
from jaxface.benchmarks.roofline import compiled_case, run_of
from jaxface.cli import parse
from jaxface.models.blocks import REMAT
from jaxface.models.precision import AUTO, PRECISIONS
from jaxface.ranges import Items, Known, OneOf, Range, ranged
from jaxface.runs.config import RANDOM, Config, EncoderOptions
from jaxface.timing import interleaved, medians
from jaxface.training.capacity import compile_step, step_bytes


@ranged()
class Options(Timed):
    """Compiles a step for every pair of a remat policy and a format of frozen kernels, and runs it if there are rounds.

    Attributes:
      method: how it is adapted.
      rank: of adapters.
      remat: what a block keeps for its backward pass: none, products, full.
      base: the format of frozen kernels: full, int8, nf4.
      precision: fp32, bf16, or what suits the device.
      rounds: steps that count; 0 only compiles.
    """

    method: Annotated[str, Known(METHODS)] = "dora"
    rank: Rank = 64
    remat: Annotated[tuple[str, ...], OneOf("remat", REMAT), Items(least=1)] = tuple(REMAT)
    base: Annotated[tuple[str, ...], OneOf("base", (FULL, *FORMATS)), Items(least=1)] = (FULL, *FORMATS)
    precision: Annotated[str, Known(PRECISIONS, AUTO)] = AUTO
    rounds: Annotated[int, Range(0, 100_000)] = 3

    def config(self, remat: str, base: str) -> Config:
        kept: dict[str, Any] = {"remat": remat, "precision": self.precision, "base": base}
        return run_of(self.method, self.rank, EncoderOptions(RANDOM, self.variant, **kept))


def measure(options: Options) -> list[dict[str, Any]]:
    """Bytes of each pair's arguments, of what lies between them and results, and of both; and the median time."""
    rows, runs = [], {}
    for base in options.base:
        for remat in options.remat:
            config = options.config(remat, base)
            if options.rounds:
                compiled, runs[base, remat] = compiled_case(options.method, config, options.batch_size)
            else:
                compiled = compile_step(config, options.batch_size)
            memory = compiled.memory_analysis()
            row = {
                "base": base,
                "remat": remat,
                "argument_bytes": memory.argument_size_in_bytes,
                "temporary_bytes": memory.temp_size_in_bytes,
            }
            rows.append(row | {"bytes": step_bytes(compiled)})
    seconds = medians(interleaved(runs, options.rounds)) if runs else {}
    return [row | ({"seconds": seconds[row["base"], row["remat"]]} if seconds else {}) for row in rows]


def table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """The pairs as a table, beside the first."""
    result = Table("base", "remat", "arguments MiB", "temporary MiB", "together MiB", "of the first", "s", "of the first", title=title)
    first = rows[0]
    for row in rows:
        sizes = [f"{row[key] / 2**20:,.0f}" for key in ("argument_bytes", "temporary_bytes", "bytes")]
        times = [f"{row['seconds']:.3f}", f"{row['seconds'] / first['seconds']:.2f}"] if "seconds" in row else []
        result.add_row(row["base"], row["remat"], *sizes, f"{row['bytes'] / first['bytes']:.2f}", *times)
    return result


def main(arguments: list[str]) -> None:
    """The command."""
    options = parse(Options, args=arguments, prog="python -m jaxface.bench memory")
    rows = measure(options)
    if options.json:
        print_json(rows)
    else:
        Console(width=150).print(table(rows, f"{options.variant}, {options.method}, batch {options.batch_size}, rank {options.rank}"))
