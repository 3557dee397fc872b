"""python -m jaxface.bench steps: seconds and peak memory of a training step per method, beside timm and PEFT's."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median
from typing import Annotated, Any, Literal

from rich.console import Console
from rich.table import Table

from jaxface.adapters.options import Rank
from jaxface.benchmarks._options import Timed, print_json
from jaxface.benchmarks._step_cases import CASES, REFERENCE_CASES, REFERENCES, TIMM_NAMES, Shape, our_case
from jaxface.benchmarks._worker import Worker, ratio, take_turns
from jaxface.cli import parse
from jaxface.errors import UserError
from jaxface.launchers import cpu_count
from jaxface.models.blocks import REMAT
from jaxface.models.precision import AUTO, PRECISIONS
from jaxface.models.variants import VARIANTS
from jaxface.progress import Track
from jaxface.ranges import Items, Known, OneOf, ranged, refuse_idle


@ranged()
class Options(Timed):
    """Times a training step of each method, each in a process of its own; the sides take turns, so that both see the same machine.

    Attributes:
      against: torch for timm and PEFT.
      rank: of the adapters.
      cases: forward, full, lp, ap, ft4, lora, dora, mtlora.
      compile: compile the reference with torch.compile.
      remat: what our blocks keep for the backward pass: none, products, full.
      precision: of ours; PyTorch's is autocast to bfloat16 on a GPU, to which "mixed" is equal, and float32 on a CPU.
    """

    against: Literal["torch"] | None = None
    variant: Annotated[str, OneOf("variant", TIMM_NAMES)] = "PE-Core-B16-224"
    rank: Rank = 64
    cases: Annotated[tuple[str, ...], OneOf("case", CASES), Items(least=1)] = CASES
    compile: bool = False
    remat: Annotated[str, OneOf("remat", REMAT)] = "products"
    precision: Annotated[str, Known(PRECISIONS, AUTO)] = AUTO

    def __post_init__(self) -> None:
        refuse_idle(self, self.against is not None, "nothing is compared without --against torch", "compile")


def measure(options: Options, case: str, track: Track) -> dict[str, Any]:
    """Median seconds and peak memory of a case and of our forward pass, which takes turns with it; the reference's where there is one."""
    shape = Shape(options.variant, options.batch_size, options.rank, cpu_count(), options.remat, options.compile, options.precision)
    with ExitStack() as stack:
        workers = {"ours": stack.enter_context(Worker(our_case, case, shape))}
        if case != "forward":
            workers["forward"] = stack.enter_context(Worker(our_case, "forward", shape))
        row: dict[str, Any] = {"case": case}
        if options.against and case in REFERENCE_CASES and (case != "ap" or VARIANTS[options.variant].pool):  # where there is one
            try:
                workers["reference"] = stack.enter_context(Worker(REFERENCES[options.against], case, shape))
            except UserError as error:
                if "out of memory" not in str(error):
                    raise
                row["reference_error"] = str(error)  # beside ours on one card: ours is measured all the same
        seconds = take_turns(workers, options.rounds, track)
        took = {name: median(values) for name, values in seconds.items()}
        row |= {"seconds": took["ours"], "peak_memory_bytes": workers["ours"].peak_memory()}
        if "forward" in took:
            row["forwards"] = took["ours"] / took["forward"]
        if "reference" in took:
            row |= {"reference_seconds": took["reference"], "ratio": ratio(seconds["ours"], seconds["reference"])}
            row["reference_peak_memory_bytes"] = workers["reference"].peak_memory()
            row["memory_ratio"] = row["peak_memory_bytes"] / row["reference_peak_memory_bytes"]
    return row


def table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """The cases as a table."""
    columns = {
        "s": ("seconds", ".3f"),
        "forward passes": ("forwards", ".2f"),
        "peak GiB": ("peak_memory_bytes", "G"),
        "reference s": ("reference_seconds", ".3f"),
        "its GiB": ("reference_peak_memory_bytes", "G"),
        "time ratio": ("ratio", ".2f"),
        "memory ratio": ("memory_ratio", ".2f"),
    }
    result = Table("case", *columns, title=title)
    for row in rows:
        cells = [
            "" if key not in row else f"{row[key] / 2**30:.2f}" if form == "G" else format(row[key], form) for key, form in columns.values()
        ]
        result.add_row(row["case"], *cells)
    return result


def main(arguments: list[str]) -> None:
    """The command."""
    options = parse(Options, args=arguments, prog="python -m jaxface.bench steps")
    rows = []
    with Track("steps", len(options.cases) * options.rounds, unit="rounds") as track:
        for case in options.cases:
            track.note(case)
            rows.append(measure(options, case, track))
            if options.json:
                print_json(rows[-1:])
    if not options.json:
        title = f"{options.variant}, batch {options.batch_size}, rank {options.rank}; medians of {options.rounds}"
        Console(file=sys.stdout).print(table(rows, title))
        for row in rows:
            if "reference_error" in row:
                print(f"{row['case']}: {row['reference_error']}")
