"""python -m jaxface.bench profile: where a step's time goes, operation by operation of the compiled program.

Times are those that JAX's profiler sees. On a CPU run it on one core (`taskset -c 0 python -m jaxface.bench profile`): of what is
shared among threads the profiler sees the part of one.
"""

from __future__ import annotations

import gzip
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
from rich.console import Console
from rich.table import Table

from jaxface.benchmarks._limits import WORK
from jaxface.benchmarks._options import print_json
from jaxface.benchmarks._program import FREE, Program
from jaxface.benchmarks.roofline import Step, compiled_case
from jaxface.cli import parse
from jaxface.errors import UserError
from jaxface.ranges import OneOf, Range, Rounds, Where, ranged
from jaxface.timing import require_trace_folder


@ranged()
class Options(Step):
    """Runs steps under JAX's profiler and prints what each kind of operation took in one, the longest first.

    Attributes:
      case: forward, lp, ft4, lora, dora, mtlora or full.
      rounds: steps that are profiled.
      trace: a folder that keeps the profiler's files, for Perfetto or TensorBoard.
      top: how many kinds are printed; the row behind them is all others.
    """

    case: Annotated[str, OneOf("case", WORK)] = "dora"
    rounds: Rounds = 3
    trace: Where | None = None
    top: Annotated[int, Range(1, 10_000)] = 30

    def __post_init__(self) -> None:
        self.config(self.case)
        require_trace_folder(self.trace)


@dataclass
class Kind:
    """What operations of one kind did, all of them together: times that they ran, seconds, FLOPs and bytes."""

    times: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0


def operations(program: Program) -> dict[str, tuple[str, float, float]]:
    """The operations of a program that take time, by name: the kind, and FLOPs and bytes of one run.

    A product's kind is its two operands, another operation's its name without the number.
    """
    found = {}
    for computation, _, fused in program.visits():
        lines = program.computations[computation]
        for line in () if fused else lines.values():
            if line.kind not in FREE:
                name, flops = line.name.lstrip("%"), program.flops(line, lines)
                sides = " x ".join(lines[operand].shape.partition("{")[0] for operand in line.operands[:2])
                kind = f"product {sides}" if flops else re.sub(r"[.\d]+$", "", name)
                found[name] = kind, flops, program.moved(line, lines)
    return found


def events(folder: Path) -> Iterator[tuple[str, float]]:
    """The operations of the newest profile in a folder: name and seconds. Beside a device that computes the host is left out."""
    newest = max(folder.glob("plugins/profile/*/*.trace.json.gz"), key=lambda path: path.stat().st_mtime)
    with gzip.open(newest) as file:
        found = json.load(file)["traceEvents"]
    places = {event["pid"]: event["args"]["name"] for event in found if event.get("ph") == "M" and event["name"] == "process_name"}
    devices = {place for place, name in places.items() if name.startswith("/device:")}
    for event in found:
        if event.get("ph") == "X" and (not devices or event["pid"] in devices):
            yield event.get("args", {}).get("hlo_op", event["name"]), event["dur"] / 1e6


def profile(run: Callable[[], Any], program: Program, rounds: int, folder: Path) -> dict[str, Kind]:
    """What each kind of operation did in one run, the longest first; the first two runs are not profiled.

    Raises UserError if the profiler saw no operation of the program.
    """
    for _ in range(2):
        jax.block_until_ready(run())
    with jax.profiler.trace(str(folder)):
        for _ in range(rounds):
            jax.block_until_ready(run())
    known = operations(program)
    kinds: dict[str, Kind] = {}
    for name, seconds in events(folder):
        if name in known:
            kind, flops, moved = known[name]
            one = kinds.setdefault(kind, Kind())
            one.times, one.seconds, one.flops, one.bytes = one.times + 1, one.seconds + seconds, one.flops + flops, one.bytes + moved
    if not kinds:
        raise UserError(f"the profiler saw no operation of the program on {jax.default_backend()}")
    for one in kinds.values():
        one.times //= rounds
        one.seconds, one.flops, one.bytes = one.seconds / rounds, one.flops / rounds, one.bytes / rounds
    return dict(sorted(kinds.items(), key=lambda item: -item[1].seconds))


def table(kinds: dict[str, Kind], title: str, top: int) -> Table:
    """The kinds as a table, each with its rate."""
    result = Table("operation", title=title)
    for name in ("times", "ms", "share %", "GFLOP/s", "GB/s"):
        result.add_column(name, justify="right")
    total, shown = sum(kind.seconds for kind in kinds.values()), list(kinds.items())[:top]
    rest = list(kinds.values())[top:]
    if rest:
        shown.append(("all others", Kind(*(sum(getattr(kind, key) for kind in rest) for key in ("times", "seconds", "flops", "bytes")))))
    for name, kind in shown:
        rates = (f"{work / kind.seconds / 1e9:,.0f}" if work and kind.seconds else "" for work in (kind.flops, kind.bytes))
        result.add_row(name, str(kind.times), f"{1e3 * kind.seconds:.1f}", f"{100 * kind.seconds / total:.1f}", *rates)
    result.add_row("all", "", f"{1e3 * total:.1f}", "100.0", f"{sum(kind.flops for kind in kinds.values()) / total / 1e9:,.0f}", "")
    return result


def main(arguments: list[str]) -> None:
    """The command."""
    options = parse(Options, args=arguments, prog="python -m jaxface.bench profile")
    compiled, run = compiled_case(options.case, options.config(options.case), options.batch_size)
    with tempfile.TemporaryDirectory() as temporary:
        kinds = profile(run, Program.of(compiled.as_text()), options.rounds, options.trace or Path(temporary))
    if options.json:
        print_json({"operation": name, **vars(kind)} for name, kind in kinds.items())
        return
    Console(width=150).print(
        table(kinds, f"{options.variant}, {options.case}, batch {options.batch_size}: one step, by kind of operation", options.top)
    )
