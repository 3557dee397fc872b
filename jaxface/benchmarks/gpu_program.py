"""python -m jaxface.bench compile: a step compiled by XLA for a graphics card that need not be there, and what its kernels move."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from jaxface.benchmarks._gpu_devices import DEVICES, Device, compiling_for
from jaxface.benchmarks._gpu_kernels import ATTENTION, KINDS, PRODUCTS, Kernel, describe
from jaxface.benchmarks.roofline import run_of
from jaxface.cli import parse
from jaxface.devices import AXIS
from jaxface.errors import UserError
from jaxface.kernels.attention import AUTO, KERNELS
from jaxface.models.precision import PRECISIONS
from jaxface.models.variants import VARIANTS, get_variant
from jaxface.plots import new_figure, styled, to_png_bytes
from jaxface.ranges import Items, Known, Place, Range, ranged, refuse_idle
from jaxface.runs.config import RANDOM, Config, EncoderOptions

Case = Literal["lp", "ap", "ft4", "lora", "dora", "mtlora", "full"]
REACHED = {PRODUCTS: 0.72, ATTENTION: 0.24, "bytes": 0.56}
"""Of what stands on paper, the share that each kind of kernel reached on an H200 in a DoRA step of PE-L: what the estimate rests on."""


@ranged("")
class Options:
    """Compiles steps for one card and counts their kernels, bytes and memory. Nothing runs; needs the extra `gpu-compile`.

    Attributes:
      device: the card.
      variant: the encoder.
      batch_size: images of a step.
      cases: what is compiled: lp (its forward pass), full, ft4, lora, dora, mtlora, ...
      rank: of the adapters.
      remat: what a block keeps for its backward pass.
      loop: how blocks come one after another: scan, unrolled; "auto" takes what training takes on a GPU.
      attention: the kernel that blocks attend with; "auto" takes what training takes on a GPU, cuDNN's.
      precision: of activations and frozen kernels; "auto" takes what training takes on a GPU, bf16.
      base: what frozen kernels are held in: as they are ("full"), int8, nf4.
      most: also find the largest batch that fits into the card's memory, by compiling for ever larger ones.
      kinds: kinds of kernels that are listed, the largest first.
      plot: a PNG file for a picture of the bytes by kind of operation.
      before: a file with the lines that `--json` printed of other programs, to be drawn beside these.
      json: print one line of JSON a case.
    """

    device: Annotated[str, Known(DEVICES)] = "h100"
    variant: Annotated[str, Known(VARIANTS)] = "PE-Core-L14-336"
    batch_size: Annotated[int, Range(1, 1_000_000)] = 128
    cases: Annotated[tuple[Case, ...], Items(least=1)] = ("lp", "full", "lora", "dora")
    rank: Annotated[int, Range(1, 65536)] = 64
    remat: Literal["none", "products", "full"] = "products"
    loop: Literal["auto", "scan", "unrolled"] = "auto"
    attention: Annotated[str, Known(KERNELS, AUTO)] = AUTO
    precision: Annotated[str, Known(PRECISIONS, AUTO)] = AUTO
    base: Literal["full", "int8", "nf4"] = "full"
    most: bool = False
    kinds: Annotated[int, Range(0, 1000)] = 0
    plot: Annotated[Path | None, Place()] = None
    before: Annotated[Path | None, Place()] = None
    json: bool = False

    def __post_init__(self) -> None:
        refuse_idle(self, self.plot is not None, "there is no picture without --plot", "before")
        refuse_idle(self, not self.json, "lines of JSON hold no kernels", "kinds")

    def config(self, case: str) -> Config:
        """What is compiled for a case."""
        base = "full" if case == "full" else self.base
        kept: dict[str, Any] = {"remat": self.remat, "loop": self.loop, "base": base, "attention": self.attention}
        encoder = EncoderOptions(RANDOM, self.variant, precision="bf16" if self.precision == AUTO else self.precision, **kept)
        return run_of(case, self.rank, encoder)


def compile_case(options: Options, case: str, images: int, card: Any) -> tuple[Any, float, float]:
    """The compiled program of a case, the seconds that took, and its FLOPs."""
    import jax

    from jaxface.runs.costs import count_flops
    from jaxface.training.capacity import step_of

    step, shapes = step_of(options.config(case), images, card)
    here = jax.sharding.NamedSharding(card, jax.sharding.PartitionSpec(AXIS))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
    flops = count_flops(step, *shapes)
    start = time.monotonic()
    compiled = jax.jit(step, donate_argnums=0).trace(*shapes).lower(lowering_platforms=("cuda",)).compile()
    return compiled, time.monotonic() - start, flops


def estimate(device: Device, figures: dict[str, Any]) -> float:
    """Seconds of one block's kernels, which run one after another: products and attention by their FLOPs, all others by their bytes."""
    multiplied = sum(flops / (REACHED[kind] * device.flops) for kind, flops in figures["flops_by_kind"].items())
    moved = figures["bytes_per_block"] - figures["product_bytes_per_block"]
    return multiplied + moved / (REACHED["bytes"] * device.bandwidth)


def largest_batch(options: Options, case: str, device: Device, card: Any) -> int:
    """The largest batch, to a sixteenth, whose step fits into the card's memory; 0 if not even one image does."""
    from jaxface.training.capacity import SHARE, step_bytes

    def fits(images: int) -> bool:
        return step_bytes(compile_case(options, case, images, card)[0]) <= SHARE * device.memory

    low, high = 0, options.batch_size
    while fits(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def measure(options: Options) -> Iterator[tuple[dict[str, Any], list[Kernel]]]:
    """One row a case, and its kernels."""
    device, encoder = DEVICES.get(options.device), get_variant(options.variant)
    with compiling_for(device) as card:
        for case in options.cases:
            print(f"compiling {case} ...", file=sys.stderr)
            compiled, seconds, flops = compile_case(options, case, options.batch_size, card)
            figures, kernels = describe(compiled, encoder, options.batch_size)
            row = {"case": case, "device": options.device, "variant": options.variant, "batch_size": options.batch_size, **figures}
            row |= {"compile_seconds": round(seconds, 2), "flops": flops}
            row["estimated_seconds"] = round(encoder.depth * estimate(device, figures), 4)
            if options.most:
                row["largest_batch"] = largest_batch(options, case, device, card)
            yield row, kernels


def table(rows: list[dict[str, Any]], title: str) -> Table:
    """A row a case."""
    result = Table("case", title=title)
    for name in (
        "GB a block",
        "of products",
        "kernels",
        "temporaries, GiB",
        "arguments, GiB",
        "compiled in, s",
        "estimate, s",
        "largest batch",
    ):
        result.add_column(name, justify="right")
    for row in rows:
        gigabytes = [f"{row[key] / 1e9:.1f}" for key in ("bytes_per_block", "product_bytes_per_block")]
        memory = [f"{row[key] / 2**30:.2f}" for key in ("temporary_bytes", "argument_bytes")]
        rest = [f"{row['compile_seconds']:.0f}", f"{row['estimated_seconds']:.3f}", str(row.get("largest_batch", ""))]
        result.add_row(row["case"], *gigabytes, f"{row['kernels_per_block']:.0f}", *memory, *rest)
    return result


def kinds_table(case: str, kernels: list[Kernel], most: int) -> Table:
    """The kinds of kernels that move the most, with how many there are."""
    kinds: dict[tuple[str, str], list[int]] = {}
    for kernel in kernels:
        kinds.setdefault((re.sub(r"[.\d]+$", "", kernel.name), re.sub(r"\{[^}]*\}", "", kernel.result)[:70]), []).append(kernel.bytes)
    result = Table("kernel", "result", "times", "GB", title=f"{case}: kernels of a block")
    for (name, shape), moved in sorted(kinds.items(), key=lambda item: -sum(item[1]))[:most]:
        result.add_row(name, shape, str(len(moved)), f"{sum(moved) / 1e9:.2f}")
    return result


@styled
def picture(rows: Sequence[dict[str, Any]], before: Sequence[dict[str, Any]] = ()) -> Figure:
    """A bar a case, of the bytes that each kind of kernel moves; above it what an earlier program moved, if it is known."""
    old = {row["case"]: row for row in before}
    bars = [(name, row) for row in rows for name, row in ((f"{row['case']}, before", old.get(row["case"])), (row["case"], row)) if row]
    figure, axes = new_figure(7, 0.8 + 0.36 * len(bars))
    left = [0.0] * len(bars)
    for kind in KINDS:
        moved = [row["bytes_by_kind"][kind] / 1e9 for _, row in bars]
        axes.barh(range(len(bars)), moved, left=left, label=kind, height=0.7)
        left = [a + b for a, b in zip(left, moved, strict=True)]
    for place, total in enumerate(left):
        axes.text(total, place, f" {total:.1f}", va="center")
    axes.set(yticks=range(len(bars)), yticklabels=[name for name, _ in bars], xlabel="GB that a block's kernels read and write in a step")
    axes.invert_yaxis()
    axes.legend(ncols=len(KINDS), loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def read_rows(path: Path | None) -> list[dict[str, Any]]:
    """The lines that `--json` printed. Raises UserError for a file that is not of such lines."""
    if path is None:
        return []
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        picture(rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--before {path}: not lines of JSON as `bench compile --json` prints them ({error})") from error
    return rows


def main(arguments: list[str]) -> None:
    """The command."""
    options = parse(Options, args=arguments, prog="python -m jaxface.bench compile")
    rows, before, console = [], read_rows(options.before), Console(width=150)
    for row, kernels in measure(options):
        rows.append(row)
        if options.json:
            print(json.dumps(row), flush=True)
        elif options.kinds:
            console.print(kinds_table(row["case"], kernels, options.kinds))
        for name in row["float32_products"]:
            print(f"{row['case']}: {name} multiplies activations in float32", file=sys.stderr)
    if options.plot:
        options.plot.write_bytes(to_png_bytes(picture(rows, before)))
    if not options.json:
        device = DEVICES.get(options.device)
        console.print(table(rows, f"{options.variant}, batch {options.batch_size}, bf16, compiled for {device.title}"))
        console.print(
            f"the estimate is no measurement: products and attention at {REACHED[PRODUCTS]:.0%} and {REACHED[ATTENTION]:.0%} of "
            f"{device.flops / 1e12:.0f} TFLOP/s, all other kernels' bytes at {REACHED['bytes']:.0%} of {device.bandwidth / 1e12:.2f} TB/s, "
            "as on an H200; what is outside the blocks is left out"
        )
