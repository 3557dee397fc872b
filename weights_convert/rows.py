"""One line of a layout's table: which of our tensors stands where in theirs, and how it is turned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Transform(NamedTuple):
    """How an array is turned: from theirs to ours, and back."""

    read: Callable[[np.ndarray], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]


def _write_patch(kernel: np.ndarray) -> np.ndarray:
    side = round((kernel.shape[0] // 3) ** 0.5)
    return kernel.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)


SAME = Transform(lambda x: x, lambda x: x)
TRANSPOSED = Transform(np.transpose, np.transpose)
ONE_BEFORE = Transform(lambda x: x[0], lambda x: x[None])
TWO_BEFORE = Transform(lambda x: x[0, 0], lambda x: x[None, None])
PATCHES = Transform(lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]), _write_patch)
"""A convolution [D, 3, p, p] over patches is a product with a kernel [p * p * 3, D]."""
When = Callable[[Any], bool]
"""Which towers, told by their configurations, a line is for."""
ONE = Transform(lambda x: x[0], lambda x: x[None])
"""An array of one number is a number."""
RANK = {ONE: 1, TRANSPOSED: 2, ONE_BEFORE: 3, TWO_BEFORE: 3, PATCHES: 4}


class Row(NamedTuple):
    """One line of a table.

    Attributes:
      ours: our name; `{i}` counts blocks.
      theirs: their name; where it has no `{i}` and ours has, theirs holds all blocks along its first axis.
      transform: between the two arrays.
      share: which part of the first axis of theirs it is, (first, last, of how many), where theirs holds several of ours.
      piece: which part of the last axis of ours it is, where ours holds several of theirs.
      when: for which encoders it is written so; files are read by the names alone.
      beside: where one name of theirs stands for different things: a tensor that tells, there, or not there with "!" before it.
      optional: whether it is no part of the encoder: what only its pre-training needs, carried from file to file.
    """

    ours: str
    theirs: str
    transform: Transform = SAME
    share: tuple[int, int, int] | None = None
    piece: tuple[int, int, int] | None = None
    when: When = lambda c: True
    beside: str = ""
    optional: bool = False


def linear(ours: str, theirs: str) -> tuple[Row, ...]:
    return Row(f"{ours}.kernel", f"{theirs}.weight", TRANSPOSED), Row(f"{ours}.bias", f"{theirs}.bias")


def fused_pool(theirs: str, attention: str, fc: str, proj: str) -> tuple[Row, ...]:
    """An attention pool whose queries, keys and values have one fused array, as torch's own attention holds them.

    Args:
      theirs: their name of it; below it stand the probe, the attention, a norm and an MLP of two layers, `fc` and `proj`.
    """
    parts = {"q": (0, 1, 3), "kv": (1, 3, 3)}
    fused = f"{theirs}.{attention}.in_proj"
    return (
        Row("pool.probe", f"{theirs}.probe", ONE_BEFORE),
        *(Row(f"pool.{name}.kernel", f"{fused}_weight", TRANSPOSED, part) for name, part in parts.items()),
        *(Row(f"pool.{name}.bias", f"{fused}_bias", SAME, part) for name, part in parts.items()),
        *linear("pool.out", f"{theirs}.{attention}.out_proj"),
        *norm("pool.norm", f"{theirs}.layernorm"),
        *linear("pool.mlp.fc", f"{theirs}.mlp.{fc}"),
        *linear("pool.mlp.proj", f"{theirs}.mlp.{proj}"),
    )


def norm(ours: str, theirs: str) -> tuple[Row, ...]:
    return Row(f"{ours}.scale", f"{theirs}.weight"), Row(f"{ours}.bias", f"{theirs}.bias")
