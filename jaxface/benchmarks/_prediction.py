"""A PREDICTION, not a measurement: PE-L steps on GPUs, from FLOPs and bytes by hand and the shares of a data sheet that an H200 reached."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from rich.table import Table

from jaxface.benchmarks._limits import WORK, Machine, Setting
from jaxface.models.variants import get_variant
from jaxface.runs.config import RANDOM, Config, EncoderOptions, MethodOptions
from jaxface.runs.costs import size
from jaxface.runs.model import shapes_of

VARIANT = "PE-Core-L14-336"
BATCH = 128
DEVICES = (1, 2, 4, 8, 16, 32, 64)
PRODUCTS_REACHED, MEMORY_REACHED = 0.72, 0.6
"""Shares of a data sheet's figures, one after the other: with them forward pass, LoRA and full fine-tuning are within 3 % of what
they took on an H200 at this batch; DoRA, whose passes over results are not counted by hand, took 1.12 times as long."""


@dataclass(frozen=True)
class Accelerator:
    """A data sheet: dense bf16 FLOPs a second, memory bytes a second, and bytes a second in each direction between devices of a node
    and between nodes (of 8)."""

    machine: Machine
    link: float
    network: float

    def reduce_seconds(self, gradient: float, devices: int) -> float:
        """A ring's sum of gradients over devices: 2 (N - 1) / N of the bytes through the slowest link."""
        return 2 * (devices - 1) / devices * gradient / (self.link if devices <= 8 else self.network)


ACCELERATORS = (
    Accelerator(Machine("L40S", 362e12, 864e9), 32e9, 25e9),
    Accelerator(Machine("A100 80 GB", 312e12, 2039e9), 300e9, 25e9),
    Accelerator(Machine("H100 SXM", 989e12, 3350e9), 450e9, 50e9),
    Accelerator(Machine("H200 SXM", 989e12, 4800e9), 450e9, 50e9),
)


def _seconds(machine: Machine, case: str, images: float) -> tuple[float, str]:
    """Predicted seconds of a step on one device: products, then bytes; and which of them takes longer."""
    encoder = get_variant(VARIANT)
    work = WORK[case](Setting(encoder, encoder.image_size, images, dtype=jnp.bfloat16))
    limits = Machine(machine.name, PRODUCTS_REACHED * machine.flops, MEMORY_REACHED * machine.bytes).seconds(work)
    by = max(limits, key=limits.__getitem__)
    return sum(limits.values()), by


def gradient_bytes(case: str) -> int:
    """Of what trains, in float32."""
    config = Config(encoder=EncoderOptions(RANDOM, VARIANT), method=MethodOptions(case))
    return 4 * size(shapes_of(config).trained)


def prediction() -> Iterator[dict[str, Any]]:
    """One line for each accelerator, case and number of devices: seconds of a step of 128 images in all, images a second."""
    for case in WORK:
        gradient = 0 if case == "forward" else gradient_bytes(case)
        for accelerator in ACCELERATORS:
            for devices in DEVICES:
                seconds, by = _seconds(accelerator.machine, case, BATCH / devices)
                reduced = accelerator.reduce_seconds(gradient, devices)
                yield {
                    "prediction": True,
                    "device": accelerator.machine.name,
                    "case": case,
                    "devices": devices,
                    "seconds": seconds + reduced,
                    "limit": by,
                    "reduce_seconds": reduced,
                    "images_per_second": BATCH / (seconds + reduced),
                }


def prediction_tables() -> Iterator[Table]:
    """The prediction as two tables: one device, every case; and DoRA and full fine-tuning over many devices."""
    lines = list(prediction())
    names = [accelerator.machine.name for accelerator in ACCELERATORS]
    assumed = f"{PRODUCTS_REACHED:.0%} of the data sheet's FLOP/s, then {MEMORY_REACHED:.0%} of its bytes/s, then gradients are summed"
    title = f"PREDICTION, not measured: {VARIANT}, bf16, batch {BATCH}, one device: ms a step (images/s)\n{assumed}"
    one = Table("case", *names, title=title)
    for case in WORK:
        cells = [line for line in lines if line["case"] == case and line["devices"] == 1]
        one.add_row(case, *(f"{1e3 * line['seconds']:,.0f} ({line['images_per_second']:,.0f})" for line in cells))
    yield one
    title = f"PREDICTION, not measured: the same {BATCH} images shared by 1 to 64 devices: images/s (share of the step spent summing)"
    many = Table("case", "devices", *names, title=title)
    for case in ("dora", "full"):
        for devices in DEVICES:
            cells = [line for line in lines if line["case"] == case and line["devices"] == devices]
            many.add_row(case, str(devices), *(f"{c['images_per_second']:,.0f} ({c['reduce_seconds'] / c['seconds']:.0%})" for c in cells))
    yield many
