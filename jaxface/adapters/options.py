"""The options of the methods, and what their words mean."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, TypedDict

from jaxface.adapters.low_rank import GAUSSIAN, INITS, RANDOM
from jaxface.adapters.task_specific import FUSIONS
from jaxface.errors import UserError
from jaxface.ranges import Known, Like, Range, ranged
from jaxface.registry import require_known

Rank = Annotated[int, Range(1, 4096)]
"""Of a low-rank update."""


def block_numbers(blocks: str) -> set[int]:
    """`0-2,5` -> {0, 1, 2, 5}. Raises UserError for anything else."""
    numbers: set[int] = set()
    for part in filter(None, blocks.replace(" ", "").split(",")):
        if not (match := re.fullmatch(r"(\d+)(?:-(\d+))?", part)) or int(match[2] or match[1]) < int(match[1]):
            raise UserError(f"blocks {blocks!r}: expected numbers and ranges from 0, as in '0-11,23'")
        numbers |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return numbers


def target_pattern(targets: str) -> re.Pattern[str]:
    """The regular expression. Raises UserError if it is none."""
    try:
        return re.compile(targets)
    except re.error as error:
        raise UserError(f"targets {targets!r}: expected a regular expression: {error}") from None


@ranged("adapter ")
class AdapterOptions:
    """What a method may be told; the defaults are the thesis's (section 3.6).

    Attributes:
      rank: r of the low-rank updates.
      scaling: factor of the update; the thesis uses none. PEFT's is `lora_alpha / rank`.
      rslora: multiply by the root of the rank too, as rsLoRA's `lora_alpha / sqrt(rank)` does (Kalajdzievski 2023).
      init: how an update starts: gaussian or kaiming (A random, B zero: the thesis's and PEFT's way, see
        `jaxface.adapters.low_rank.RANDOM`), pissa or olora (`INITS`).
      split_qkv: give q, k and v an adapter each instead of one for the fused kernel.
      pool_inputs: adapt the attention pool's q, k and v kernels too.
      detach_norm: treat DoRA's norm as a constant in the backward pass.
      dropout: share of an adapter's inputs that each training step leaves out; the frozen kernels see all of them.
      train_magnitude: whether DoRA's magnitudes train.
      targets: which linears LoRA and DoRA adapt, as one regular expression that their whole names match (`blocks.3.attn.qkv`,
        `pool.kv`, `projection`; the parts of a block are attn.qkv, attn.out, mlp.fc and mlp.proj); empty for the usual ones.
      blocks: the adapted blocks, as numbers and ranges from 0 (`0-11,23`), empty for all; in MTLoRA the
        task-specific ones, empty for the last, or with `fusion` for the last of each quarter.
      num_tasks: updates of a task-specific kernel; a run fills in the number of its tasks.
      shared_set: give task-specific kernels MTLoRA's shared update too, which gets no gradient where nothing shared follows.
      task_dora: make the task-specific updates DoRA (TS-DoRA).
      fusion: what becomes of the task-specific blocks' features at their several depths, one of `jaxface.adapters.task_specific.FUSIONS`
        (multi-scale MTLoRA), or none: then each task goes on alone from the first of these blocks on.
    """

    rank: Rank = 64
    scaling: Annotated[float, Range(above=0, high=1e4)] = 1.0
    rslora: bool = False
    init: Annotated[str, Known(INITS, *RANDOM)] = GAUSSIAN
    split_qkv: bool = False
    pool_inputs: bool = False
    detach_norm: bool = True
    dropout: Annotated[float, Range(0, below=1)] = 0.0
    train_magnitude: bool = True
    targets: Annotated[str, Like(target_pattern, "a regular expression")] = ""
    blocks: Annotated[str, Like(block_numbers, "as in 0-11,23")] = ""
    num_tasks: Annotated[int, Range(1, 1000)] = 1
    shared_set: bool = False
    task_dora: bool = False
    fusion: Annotated[str, Known(FUSIONS, "none")] = "none"

    @property
    def factor(self) -> float:
        """What A B is multiplied by."""
        return self.scaling * (math.sqrt(self.rank) if self.rslora else 1.0)


class Keywords(TypedDict, total=False):
    """The fields of `AdapterOptions` as keywords."""

    rank: int
    scaling: float
    rslora: bool
    init: str
    split_qkv: bool
    pool_inputs: bool
    detach_norm: bool
    dropout: float
    train_magnitude: bool
    targets: str
    blocks: str
    num_tasks: int
    shared_set: bool
    task_dora: bool
    fusion: str


def make_options(options: Mapping[str, Any]) -> AdapterOptions:
    """AdapterOptions from keywords. Raises UserError that names the unknown one."""
    require_known("adapter option", options, AdapterOptions.__dataclass_fields__)
    return replace(AdapterOptions(), **options)
