"""python -m jaxface.bench roofline: what a step must do, what this machine can do, and the share of that limit which is reached."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import median
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from jaxface.adapters.methods import options_for
from jaxface.adapters.options import AdapterOptions, Rank
from jaxface.benchmarks._limits import WORK, Machine, Setting, machine_probe, typical
from jaxface.benchmarks._options import Timed, print_json
from jaxface.benchmarks._prediction import prediction, prediction_tables
from jaxface.benchmarks._program import count
from jaxface.cli import parse
from jaxface.models.encoder import normalize_images
from jaxface.models.precision import AUTO, PRECISIONS, precision_of
from jaxface.models.variants import get_variant
from jaxface.plots import INK, new_figure, styled, to_png_bytes
from jaxface.ranges import Known, Name, OneOf, Range, Where, ranged, refuse_idle
from jaxface.registry import require_known
from jaxface.runs.config import RANDOM, Config, EncoderOptions, MethodOptions
from jaxface.runs.model import shapes_of
from jaxface.timing import interleaved
from jaxface.training.capacity import step_bytes, step_of

TASKS = ("age", "gender", "emotion")


def run_of(method: str, rank: int, encoder: EncoderOptions, tasks: tuple[str, ...] = TASKS) -> Config:
    """The run whose step is measured; the rank is of adapters, where the method has some."""
    return Config(tasks=tasks, encoder=encoder, method=MethodOptions(method, options_for(method, AdapterOptions(rank=rank))))


@ranged()
class Step(Timed):
    """What is measured.

    Attributes:
      image_size: side in pixels, 0 for the encoder's own.
      rank: of adapters.
      precision: fp32, bf16, or what suits the device.
      attention: a kernel of `jaxface.kernels`.
      remat: what a block keeps for its backward pass.
    """

    image_size: Annotated[int, Range(0, 8192)] = 0
    rank: Rank = 64
    precision: Annotated[str, Known(PRECISIONS, AUTO)] = AUTO
    attention: Name = "auto"
    remat: Literal["none", "products", "full"] = "products"

    def config(self, case: str) -> Config:
        """The run that a case is a step of. Raises UserError for an unknown case."""
        require_known("case", [case], WORK)
        encoder = EncoderOptions(RANDOM, self.variant, self.image_size, self.remat, self.precision, attention=self.attention)
        return run_of("lp" if case == "forward" else case, self.rank, encoder)

    def setting(self) -> Setting:
        """What is counted by hand."""
        encoder = get_variant(self.variant)
        dtype = precision_of(self.precision).dtype
        return Setting(encoder, self.image_size or encoder.image_size, self.batch_size, self.rank, len(TASKS), dtype)


@ranged()
class Options(Step):
    """Measures the machine and each case, and counts FLOPs and bytes by hand and from the compiled program.

    Attributes:
      cases: forward, lp, ft4, lora, dora, mtlora, full; no case at all leaves the prediction alone.
      rounds: steps that count, the machine measured anew before each.
      plot: a file for the picture.
      json: print one JSON object a case, then one for each line of the prediction.
    """

    cases: Annotated[tuple[str, ...], OneOf("case", WORK)] = tuple(WORK)
    plot: Where | None = None

    def __post_init__(self) -> None:
        for case in self.cases:
            self.config(case)
        refuse_idle(self, bool(self.cases), "no case is measured", "plot")


def random_like(shapes: Any) -> Any:
    """Arrays of the shapes: small random numbers, and zeros where they are whole."""
    rng = np.random.default_rng(0)

    def one(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype)
        return jnp.asarray(rng.random(leaf.shape, np.float32) * 0.02 + 1e-3, leaf.dtype)

    return jax.tree.map(one, shapes)


def compiled_case(case: str, config: Config, images: int) -> tuple[Any, Callable[[], Any]]:
    """A case's compiled program, and a function that runs it once."""
    step, shapes = step_of(config, images)
    if case == "forward":
        parts = shapes_of(config)
        arrays = {**parts.trained, **parts.statistics, **parts.frozen}
        pixels = jax.ShapeDtypeStruct(shapes[2]["image"].shape[1:], jnp.uint8)
        forward = jax.jit(lambda arrays, images: parts.structure.build(arrays).features(normalize_images(images)))
        compiled = forward.lower(arrays, pixels).compile()
        arguments = random_like((arrays, pixels))
        return compiled, lambda: compiled(*arguments)
    compiled = step.lower(*shapes).compile()
    held = [random_like(shapes[0])]
    frozen, batch = random_like(shapes[1:])

    def run() -> Any:
        state, metrics = compiled(held.pop(), frozen, batch)
        held.append(state)
        return metrics["loss"]

    return compiled, run


def measure(case: str, options: Options, probe: Callable[[], Machine]) -> dict[str, Any]:
    """Time, counts and share of the limit of one case: the median of its ratios to what the machine did just before each step."""
    compiled, run = compiled_case(case, options.config(case), options.batch_size)
    work, program = WORK[case](options.setting()), count(compiled)
    machines: list[Machine] = []
    turns = {"machine": lambda: machines.append(probe()), case: run}
    seconds = interleaved(turns, options.rounds)[case]
    machines = machines[-options.rounds :]
    machine = typical(machines)
    limits = machine.seconds(work)
    by = max(limits, key=limits.__getitem__)
    analysis = compiled.cost_analysis()
    return {
        "case": case,
        "seconds": median(seconds),
        "gflop_by_hand": work.flops / 1e9,
        "gflop_of_program": program.flops / 1e9,
        "gflop_cost_analysis": analysis.get("flops", math.nan) / 1e9,
        "gflop_of_program_once": program.flops_once / 1e9,
        "gbyte_by_hand": work.bytes / 1e9,
        "gbyte_of_program": program.bytes / 1e9,
        "machine_gflops": machine.flops / 1e9,
        "machine_gbytes": machine.bytes / 1e9,
        "limit_seconds": limits[by],
        "limit": by,
        "share": median(machine.seconds(work)[by] / took for machine, took in zip(machines, seconds, strict=True)),
        "peak_memory_bytes": step_bytes(compiled),
    }


def table(rows: Sequence[dict[str, Any]], machine: Machine, title: str) -> Table:
    """The cases as a table, under what the machine did between them."""
    found = f"{machine.name}: {machine.flops / 1e9:,.0f} GFLOP/s in matrix products, {machine.bytes / 1e9:,.1f} GB/s of memory"
    result = Table(title=f"{title}\n{found}")
    for name in ("case", "s", "GFLOP by hand", "of the program", "GB by hand", "of the program", "limit s", "set by", "share %"):
        result.add_column(name, justify="left" if name in ("case", "set by") else "right")
    for row in rows:
        flops = (f"{row['gflop_by_hand']:,.0f}", f"{row['gflop_of_program']:,.0f}")
        moved = (f"{row['gbyte_by_hand']:.2f}", f"{row['gbyte_of_program']:.2f}")
        limit = (f"{row['limit_seconds']:.3f}", row["limit"], f"{100 * row['share']:.0f}")
        result.add_row(row["case"], f"{row['seconds']:.3f}", *flops, *moved, *limit)
    return result


@styled
def picture(rows: Sequence[dict[str, Any]], machine: Machine) -> Figure:
    """The roofline, and where each case stands below it."""
    figure, axes = new_figure(7, 4)
    intensities = [row["gflop_by_hand"] / row["gbyte_by_hand"] for row in rows]
    reach = np.geomspace(min(1, *intensities), 4 * max(intensities), 200)
    axes.loglog(reach, np.minimum(machine.flops, reach * machine.bytes) / 1e9, color=INK)
    for row, intensity in zip(rows, intensities, strict=True):
        axes.loglog([intensity], [row["gflop_by_hand"] / row["seconds"]], "o", label=f"{row['case']}: {100 * row['share']:.0f} %")
    axes.set(xlabel="FLOP per byte between memory and chip", ylabel="GFLOP/s", title=f"{machine.name}: the limit, and the share reached")
    axes.legend()
    return figure


def main(arguments: list[str]) -> None:
    """The command."""
    options = parse(Options, args=arguments, prog="python -m jaxface.bench roofline")
    rows, console = [], Console(width=150)
    if options.cases:
        probe = machine_probe(options.setting().dtype)
        machine = probe()
        if options.json:
            print_json([{"machine": asdict(machine)}])
        for case in options.cases:
            rows.append(measure(case, options, probe))
            if options.json:
                print_json(rows[-1:])
        machine = typical([Machine(machine.name, 1e9 * row["machine_gflops"], 1e9 * row["machine_gbytes"]) for row in rows])
        if not options.json:
            console.print(table(rows, machine, f"{options.variant}, batch {options.batch_size}, {options.setting().dtype.name}"))
        if options.plot:
            options.plot.write_bytes(to_png_bytes(picture(rows, machine)))
    if options.json:
        print_json(prediction())
    else:
        for predicted in prediction_tables():
            console.print(predicted)
