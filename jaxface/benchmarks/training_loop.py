"""What the training loop costs beside its compiled step: input, logging and a checkpoint, against the bare step on a batch that is there.

python -m jaxface.bench loop --variant PE-Core-T16-384 --method lora --batch-size 8
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from jaxface.adapters.methods import METHODS
from jaxface.benchmarks._options import Timed, print_json
from jaxface.cli import parse
from jaxface.data.synthetic import DrawnSet
from jaxface.models.variants import VARIANTS
from jaxface.ranges import Known, Range, Rounds, Where, ranged
from jaxface.runs.config import RANDOM, Config, DataOptions, EncoderOptions, MethodOptions
from jaxface.timing import interleaved, medians, require_trace_folder


@ranged()
class Options(Timed):
    """Times epochs of the loop and as many bare steps, in turns.

    Attributes:
      method: how it is adapted.
      steps: steps of an epoch; each epoch ends with a checkpoint.
      rounds: epochs that are timed.
      workers: processes that read, as `--data.workers`.
      augment: as `--data.augment`.
      trace: a folder for a trace of one epoch (perfetto), in which the gaps between steps can be seen.
    """

    variant: Annotated[str, Known(VARIANTS)] = "PE-Core-T16-384"
    method: Annotated[str, Known(METHODS)] = "dora"
    steps: Annotated[int, Range(1, 100_000)] = 10
    rounds: Rounds = 3
    workers: Annotated[int, Range(0, 1024)] = 0
    augment: bool = True
    trace: Where | None = None

    def __post_init__(self) -> None:
        require_trace_folder(self.trace)


def main(arguments: list[str]) -> None:
    """Prints the median seconds of a step in the loop and alone, and their ratio."""
    options = parse(Options, args=arguments, prog="python -m jaxface.bench loop")
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(options, folder)
    result: dict[str, Any] = {"case": f"{options.variant} {options.method}", "batch_size": options.batch_size}
    result |= {name: value / options.steps for name, value in seconds.items()}
    result["ratio"] = seconds["loop"] / seconds["step"]
    if options.json:
        print_json([result])
    else:
        print(f"{result['case']}, batch {options.batch_size}: {result['step']:.4f} s a step alone, {result['loop']:.4f} s in the loop")
        print(f"the loop adds {100 * (result['ratio'] - 1):.1f} %")


def measure(options: Options, folder: str) -> dict[str, float]:
    """Median seconds of `options.steps` steps, as `loop` and alone as `step`."""
    from jaxface.training.loop import Run

    records = 5 * options.steps * options.batch_size // 4 + 50  # about a fifth of them is for validation
    config = Config(
        name="loop",
        out=folder,
        encoder=EncoderOptions(weights=RANDOM, variant=options.variant),
        method=MethodOptions(options.method),
        data=DataOptions(drawn=DrawnSet(count=records, test_count=8), augment=options.augment, workers=options.workers),
        batch_size=options.batch_size,
        epochs=1000,
    )
    run = Run(config)
    run.steps_per_epoch = options.steps
    with run.open() as training:
        bare = _bare(training, options.steps)

        def loop() -> object:
            training.train_epoch()
            training.save()
            return training.state

        seconds = interleaved({"loop": loop, "step": bare}, rounds=options.rounds)
        if options.trace is not None:
            with jax.profiler.trace(str(options.trace), create_perfetto_trace=True):
                jax.block_until_ready(loop())
        training.checkpoints.wait()
    return medians(seconds)


def _bare(training: Any, steps: int) -> Callable[[], object]:
    """As many steps on one batch that is on the device already."""
    from jaxface.devices import shard

    run, item = training.run, training.next_batch()
    batch = jax.tree.map(jnp.asarray, shard({name: item[name] for name in ("image", "labels")}))

    def run_steps() -> object:
        for _ in range(steps):
            training.state, _ = run.step(training.state, run.frozen, batch)
        return training.state

    return run_steps
