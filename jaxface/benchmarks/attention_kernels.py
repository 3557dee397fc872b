"""python -m jaxface.bench attention [KERNEL...]: whether attention kernels are right, and their time beside others."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from jaxface.benchmarks._attention_cases import CALLS, OTHERS, attention_flops, our_attention
from jaxface.benchmarks._limits import machine_probe
from jaxface.benchmarks._options import print_json
from jaxface.benchmarks._step_cases import Shape
from jaxface.benchmarks._worker import Worker, ratio, take_turns
from jaxface.cli import parse
from jaxface.kernels.attention import AUTO, KERNELS, get_kernel
from jaxface.kernels.conformance import CASES, DTYPES, check
from jaxface.launchers import cpu_count
from jaxface.models.variants import get_variant
from jaxface.progress import Track
from jaxface.ranges import Count, Items, Like, OneOf, Range, Rounds, Word, ranged, refuse_idle, require


@ranged()
class Options:
    """Runs kernels forward and backward through every shape against the formula in float64; exit status 1 if one fails.

    With `--against torch` it times them instead, in the shapes of whole encoders, beside `jax.nn.dot_product_attention` and PyTorch's
    `scaled_dot_product_attention`: each in a process of its own, in turns, with rotary positions.

    Attributes:
      kernels: names, of your own those that --import FILE.py registers; all that are known if none is named.
      cases: shapes by name; all if none is named.
      dtypes: fp32, bf16; all that a kernel is for if none is named.
      rounds: timed calls of each; 0 times nothing.
      json: print one JSON object a case.
      against: torch.
      variants: encoders whose blocks' shapes are timed, with images of a batch: NAME:IMAGES.
    """

    kernels: Annotated[tuple[str, ...], Like(get_kernel), tyro.conf.Positional] = ()
    cases: Annotated[tuple[str, ...], OneOf("case", [case.name for case in CASES])] = ()
    dtypes: Annotated[tuple[str, ...], OneOf("dtype", DTYPES)] = ()
    rounds: Annotated[int, Range(0, 100_000)] = 5
    json: bool = False
    against: Literal["torch"] | None = None
    variants: Annotated[tuple[str, ...], Word(r"[^\s:]+:\d{1,5}", "NAME:IMAGES, such as PE-Core-B16-224:8"), Items(least=1)] = (
        "PE-Core-B16-224:8",
        "PE-Core-L14-336:2",
    )

    def __post_init__(self) -> None:
        self.shapes()
        refuse_idle(self, self.against is not None, "shapes of encoders are timed with --against torch alone", "variants")
        refuse_idle(self, self.against is None, "with --against whole encoders' shapes are timed", "cases", "dtypes")
        if self.against:
            require(Rounds, self.rounds, "rounds")

    def shapes(self) -> list[Shape]:
        """What `variants` says. Raises UserError for an unknown encoder, or no number of images."""
        shapes = []
        for word in self.variants:
            variant, _, images = word.partition(":")
            get_variant(variant)
            require(Count, int(images), f"variants {word}: images")
            shapes.append(Shape(variant, int(images), 0, cpu_count()))
        return shapes


def compare(options: Options) -> list[dict[str, Any]]:
    """Seconds of each kernel's call, forward and backward, and how many times as fast it is as each of the others' functions."""
    probe, rows = machine_probe(), []
    makers = dict.fromkeys(options.kernels or (AUTO,), our_attention) | OTHERS
    with Track("attention", len(options.variants) * options.rounds, unit="rounds") as track:
        for shape in options.shapes():
            track.note(shape.variant)
            rate = probe().flops
            with ExitStack() as stack:
                workers = {name: stack.enter_context(Worker(maker, name, shape)) for name, maker in makers.items()}
                seconds = take_turns(workers, options.rounds, track)
            for name, values in seconds.items():
                took = median(values) / CALLS
                flops = attention_flops(shape) / took
                row = {"variant": shape.variant, "images": shape.batch_size, "kernel": name, "seconds": took, "flops": flops}
                row |= {f"times_{other}": ratio(seconds[other], values) for other in OTHERS}
                rows.append(row | {"share_of_products": flops / rate})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The comparison as a table."""
    names = ("encoder", "images", "kernel", "ms", "GFLOP/s", "share of products' rate", "times jax.nn's speed", "times torch's")
    result = Table(*names, title="attention, forward and backward, rotary positions, float32, or bfloat16 on a GPU")
    for row in rows:
        ratios = (f"{row[f'times_{other}']:.2f}" for other in OTHERS)
        figures = (f"{1e3 * row['seconds']:.2f}", f"{row['flops'] / 1e9:.0f}", f"{100 * row['share_of_products']:.0f} %")
        result.add_row(row["variant"], str(row["images"]), row["kernel"], *figures, *ratios)
    return result


def main(arguments: list[str]) -> int:
    """The command."""
    options = parse(Options, args=arguments, prog="python -m jaxface.bench attention")
    if options.against:
        rows = compare(options)
        if options.json:
            print_json(rows)
        else:
            Console(width=150).print(table(rows))
        return 0
    cases = [case for case in CASES if not options.cases or case.name in options.cases]
    good = True
    for kernel in options.kernels or tuple(KERNELS):
        report = check(kernel, cases=cases, dtypes=options.dtypes, rounds=options.rounds, show=not options.json)
        good = good and report.ok
        if options.json:
            print_json({"kernel": kernel, **dataclasses.asdict(row), "ok": row.ok} for row in report.rows)
    return 0 if good else 1
