"""What a training step needs before it runs: its compiled program, its memory, and the largest batch that fits."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxface.adapters.methods import get_method
from jaxface.errors import UserError
from jaxface.objectives.balancing import get_balancer
from jaxface.runs.config import RANDOM, Config
from jaxface.runs.folder import read_config
from jaxface.runs.model import load_base, shapes_of
from jaxface.runs.parts import Parts
from jaxface.training.optimizer import make_optimizer
from jaxface.training.step import make_step, start_state

SHARE = 0.8
"""Of a device's free memory that a step may take: allocators need room between blocks, and batches wait beside it."""
MOST = 4096
"""Images of a device that the search ends at."""


def step_of(config: Config, images: int, mesh: jax.sharding.Mesh | None = None, parts: Parts | None = None) -> tuple[Any, tuple[Any, ...]]:
    """The training step of a configuration for that many images on one device, and the shapes of its arguments; nothing is computed.

    Args:
      mesh: of devices that are not here; over this process's devices if None.
      parts: the model as shapes; of the variant that is named if None.
    """
    parts = parts or shapes_of(config)
    encoder = parts.build().encoder.config
    side = config.encoder.image_size or encoder.image_size
    balancer, optimizer = get_balancer(config.balancing), make_optimizer(config.optimizer, parts.groups, config.optimizer.warmup_steps + 1)
    kinds = config.known
    more: dict[str, Any] = {"losses": config.losses, "kinds": kinds, "accumulate": config.accumulate, "average": config.optimizer.average}
    step = make_step(parts.structure, config.tasks, balancer, optimizer, mesh=mesh, **more)

    def start(trained: Any, statistics: Any) -> Any:
        return start_state(trained, statistics, config.tasks, balancer, optimizer, config.optimizer.average, config.seed)

    blanks = {task: kinds[task].of.array(kinds[task], [None] * images) for task in config.tasks}
    labels = {task: jax.ShapeDtypeStruct(blank.shape, "float32" if blank.dtype.kind == "f" else "int32") for task, blank in blanks.items()}
    batch = {"image": jax.ShapeDtypeStruct((images, side, side, 3), jnp.uint8), "labels": labels}
    state = jax.eval_shape(start, parts.trained, parts.statistics)
    return step, jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), (state, parts.frozen, batch))


def compile_step(config: Config, images: int, parts: Parts | None = None) -> Any:
    """The compiled step for that many images on one device."""
    step, shapes = step_of(config, images, parts=parts)
    return step.lower(*shapes).compile()


def step_bytes(compiled: Any) -> int:
    """The most memory that a compiled program holds: arguments, results and what lies between; donated buffers once."""
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return held + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes


def free_bytes() -> int:
    """Memory of a device that is free: of an accelerator as its allocator says, of CPU devices a share of the machine's each."""
    device = jax.local_devices()[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:  # what can be had, files that are kept in memory only while nobody asks for it included
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return free // jax.local_device_count()


def largest_batch(needs: Callable[[int], int], free: int, unit: int = 1, most: int = MOST) -> int:
    """The largest multiple of `unit`, at most `most`, whose needs fit, or one that is a sixteenth smaller at most.

    Memory grows with the batch as a straight line nearly: the line through two programs tells where the limit is. Halving what is in
    doubt in every other step ends the search where it does not.

    Args:
      needs: bytes of a step of that many images; each call compiles a program.

    Raises UserError if one unit does not fit.
    """
    found: dict[int, int] = {}  # bytes by units
    fits, too_many, guess = 0, most // unit + 1, 1
    while too_many - fits > max(1, fits // 16):
        found[guess] = needs(guess * unit)
        fits, too_many = (guess, too_many) if found[guess] <= free else (fits, guess)
        if too_many == 1:
            raise UserError(
                f"a step of {unit} images needs {found[1] / 2**30:.2f} GiB and {free / 2**30:.2f} are free: choose a smaller encoder or "
                "image, --encoder.remat full, or --encoder.base int8"
            )
        if too_many not in found:
            guess = _crossing(found, min(found), fits, free)
        elif len(found) % 2:
            guess = (fits + too_many) // 2
        else:
            guess = _crossing(found, fits, too_many, free)
        guess = min(max(guess, fits + 1), too_many - 1)
    return fits * unit


def _crossing(found: dict[int, int], low: int, high: int, free: int) -> int:
    """Where the line through two points meets the free memory."""
    slope = (found[high] - found[low]) / max(1, high - low)
    return int(low + (free - found[low]) / slope) if slope > 0 else 2 * high


def settle_batch_size(config: Config) -> Config:
    """The configuration with a number in place of "auto": that of the run folder if there is one, else the largest that fits."""
    if config.batch_size != "auto":
        return config
    if (config.folder / "config.json").exists():
        return replace(config, batch_size=read_config(config.folder).batch_size)
    devices, free = jax.device_count(), int(SHARE * free_bytes())
    if jax.process_count() > 1:
        raise UserError("--batch-size auto: several processes may see different memory; name the size that it finds on one of them")

    parts = shapes_of(config, None if config.encoder.weights in (None, RANDOM) else load_base(config))

    def needs(images: int) -> int:
        found = step_bytes(compile_step(config, images, parts))
        print(f"batch size: {images} images need {found / 2**30:.2f} of {free / 2**30:.2f} GiB", file=sys.stderr, flush=True)
        return found

    piece = 2 if get_method(config.method.name).batch_norm else 1  # which one image has none of
    batch_size = devices * largest_batch(needs, free, piece * config.accumulate)
    print(f"batch size: {batch_size} over {devices} devices", file=sys.stderr, flush=True)
    return replace(config, batch_size=batch_size)
