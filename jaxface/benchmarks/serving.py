"""python -m jaxface.bench serve: throughput and latency of many adapters behind one encoder, beside one and beside what is used instead."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxface.adapters.options import Rank
from jaxface.benchmarks import _serving_cases as cases
from jaxface.benchmarks._options import Timed, print_json
from jaxface.benchmarks._serving_cases import Case, Window
from jaxface.benchmarks._step_cases import TIMM_NAMES
from jaxface.benchmarks._worker import peak_memory
from jaxface.cli import parse
from jaxface.errors import UserError
from jaxface.prediction.adapter_server import AdapterServer
from jaxface.progress import Track
from jaxface.ranges import Count, Items, Range, Rounds, ranged

OURS = "shared encoder"
MOST = 16
"""Processes that are started at once."""


@ranged()
class Options(Timed):
    """Times a server without its HTTP part: clients that each ask for a face by one adapter, and ask again once they are answered.

    Attributes:
      batch_size: faces of a batch at most.
      adapters: how many there are on disk, a case each; the first is what the others are compared with.
      mix: which are asked for: each as often, or by Zipf's law, the k-th 1/k as often as the first.
      rank: of each.
      method: of each.
      batches: that each case answers when its turn comes.
      rounds: turns of each case that count; one before them does not.
      memory: adapters that stay in memory.
      beside: also a merged model for each adapter, switched from face to face; a process for each adapter (at most 16); PEFT's mixed batch
        on timm's encoder (LoRA alone, each adapter as often).
    """

    batch_size: Count = 32
    adapters: Annotated[tuple[Annotated[int, Range(1, 100_000)], ...], Items(least=1)] = (1, 8, 100)
    mix: Literal["uniform", "zipf"] = "uniform"
    rank: Rank = 16
    method: Literal["lora", "dora"] = "dora"
    batches: Annotated[int, Range(1, 100_000)] = 2
    rounds: Rounds = 3
    memory: Count = 256
    beside: tuple[Literal["merged", "processes", "peft"], ...] = ()

    def __post_init__(self) -> None:
        if "peft" in self.beside and self.method != "lora":
            raise UserError(f"beside peft: PEFT mixes LoRA alone in a batch, method is {self.method}: --method lora")
        if "peft" in self.beside and self.variant not in TIMM_NAMES:
            raise UserError(f"beside peft: timm has no {self.variant}")


def make_cases(options: Options, server: AdapterServer, stack: ExitStack) -> dict[tuple[str, int], Case]:
    """What takes turns, by kind and number of adapters."""
    folder, size, batches = Path(server.folder), options.batch_size, options.batches
    found: dict[tuple[str, int], Case] = {}
    for count in options.adapters:
        found[OURS, count] = cases.clients(server, count, options.mix == "zipf", batches)
        if "merged" in options.beside:
            found["merged, switched", count] = cases.merged(folder, count, size, batches)
        if "processes" in options.beside and count <= MOST:
            found["a process each", count] = stack.enter_context(cases.processes(folder, count, size, batches))
        if "peft" in options.beside:
            found["PEFT's mixed batch", count] = stack.enter_context(cases.peft(count, size, batches, options.variant, options.rank))
    return found


def measure(options: Options, folder: Path, track: Track) -> Iterator[dict[str, Any]]:
    """A row for each case."""
    server = AdapterServer(folder, batch_size=options.batch_size, memory=options.memory, device=options.memory)
    server.warm_up()
    with ExitStack() as stack:
        takes = make_cases(options, server, stack)
        track.total = len(takes) * (1 + options.rounds)
        windows: dict[tuple[str, int], list[Window]] = {key: [] for key in takes}
        loads: dict[tuple[str, int], int] = dict.fromkeys(takes, 0)
        programs = server.programs
        for turn in range(1 + options.rounds):
            for key, case in takes.items():
                track.note(f"{key[1]} adapters, {key[0]}")
                before = server.shelf.loads.total()
                window = case()
                if turn:
                    windows[key].append(window)
                    loads[key] += server.shelf.loads.total() - before
                track.advance()
    first = windows[OURS, options.adapters[0]]
    memory, own = peak_memory(), server.shelf.get(server.names[0]).bytes
    for (kind, count), found in windows.items():
        latencies = [took for one in found for took in one.latencies]
        row = {
            "case": kind,
            "adapters": count,
            "mix": options.mix,
            "rank": options.rank,
            "method": options.method,
            "images_per_second": median(one.faces / one.seconds for one in found),
            "p50_seconds": median(latencies),
            "p99_seconds": float(np.percentile(latencies, 99)),
            "of_one_adapter": median(a.seconds / a.faces / (b.seconds / b.faces) for a, b in zip(found, first, strict=True)),
        }
        if kind == OURS:
            row |= {"loads": loads[kind, count], "compiled_while_serving": server.programs - programs}
            row |= {"megabytes_an_adapter": own / 1e6, "peak_memory_bytes": memory}
        yield row


def main(arguments: list[str]) -> None:
    """The command."""
    options = parse(Options, args=arguments, prog="python -m jaxface.bench serve")
    columns = ("adapters", "", "images/s", "time of the first", "p50, s", "p99, s", "read from disk", "MB each")
    table = Table(*columns, title=f"{options.variant}, {options.method} of rank {options.rank}, batch {options.batch_size}, {options.mix}")
    with tempfile.TemporaryDirectory() as temporary, Track("serve", 0, unit="turns") as track:
        cases.write_adapters(Path(temporary), max(options.adapters), options.variant, options.method, options.rank)
        for row in measure(options, Path(temporary), track):
            if options.json:
                print_json([row])
            forms = {"images_per_second": ".1f", "of_one_adapter": ".2f", "p50_seconds": ".3f", "p99_seconds": ".3f"}
            figures = [format(row[key], form) for key, form in forms.items()]
            own = [str(row["loads"]), f"{row['megabytes_an_adapter']:.1f}"] if row["case"] == OURS else []
            table.add_row(str(row["adapters"]), row["case"], *figures, *own)
    if not options.json:
        Console(width=150).print(table)
