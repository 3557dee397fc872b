"""Quantised frozen kernels: int8 with a scale per output feature, and 4-bit NormalFloat in blocks (QLoRA, Dettmers et al. 2023).

A quantised kernel stands where an array stood, alone or as the base of an adapter. It becomes an array again for one product at a time,
in the forward pass and once more in the backward pass (`jaxface.kernels.matmul`), so that no array of full precision stays in memory;
it gets no gradient. DoRA's magnitudes are still the lengths of the columns before they were rounded.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from types import EllipsisType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxface.adapters.low_rank import Constant, Frozen, column_norms_squared
from jaxface.adapters.methods import Group, group_of
from jaxface.adapters.places import linears
from jaxface.errors import UserError
from jaxface.kernels.matmul import compressed_product
from jaxface.models.encoder import Encoder
from jaxface.registry import Registry


class Quantized(Frozen):
    """A quantised frozen kernel [..., in, out]. Indexed with `...` it is the array that it stands for, as a parameter is.

    Attributes:
      values: the codes.
      scale: what the codes count in.
      dtype: of the array that was quantised.
    """

    values: Constant
    scale: Constant
    dtype: np.dtype

    def __getitem__(self, index: EllipsisType) -> jax.Array:
        return jax.lax.stop_gradient(self.merge())

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        """x [..., in] @ self -> [..., out]"""
        return compressed_product(x, self)

    @property
    def shape(self) -> tuple[int, ...]:
        return jax.eval_shape(type(self).merge, self).shape

    def merge(self) -> jax.Array:
        """The plain kernel [..., in, out], in its dtype."""
        raise NotImplementedError


class Int8(Quantized):
    """Whole numbers from -127 to 127 [..., in, out], in units of each output feature's largest value / 127."""

    def __init__(self, kernel: jax.Array) -> None:
        largest = jnp.max(jnp.abs(kernel.astype(jnp.float32)), -2, keepdims=True)
        scale = jnp.where(largest > 0, largest, 1) / 127
        self.values = Constant(jnp.round(kernel / scale).astype(jnp.int8))
        self.scale = Constant(scale)
        self.dtype = kernel.dtype

    @partial(jax.jit, inline=True)
    def merge(self) -> jax.Array:
        return (self.values[...] * self.scale[...]).astype(self.dtype)


BLOCK = 64
"""Values of an output feature that share a scale in NF4 (QLoRA, section 3)."""
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""The 16 values of NF4 (QLoRA, appendix E): quantiles of the normal distribution, scaled to -1..1, with a zero among them."""


class NF4(Quantized):
    """Two 4-bit codes a byte [..., in / 2, out], in units of the largest value of 64 inputs of an output feature [..., in / 64, out]."""

    def __init__(self, kernel: jax.Array) -> None:
        *front, inputs, outputs = kernel.shape
        self.inputs = inputs
        blocks = -(-inputs // BLOCK)
        padding = [(0, 0)] * len(front) + [(0, blocks * BLOCK - inputs), (0, 0)]
        kernel_blocks = jnp.pad(kernel, padding).astype(jnp.float32).reshape(*front, blocks, BLOCK, outputs)
        largest = jnp.max(jnp.abs(kernel_blocks), -2, keepdims=True)
        scale = jnp.where(largest > 0, largest, 1).astype(jnp.bfloat16)
        edges = [(low + high) / 2 for low, high in itertools.pairwise(LEVELS)]
        scaled = kernel_blocks / scale
        codes = sum((scaled > edge).astype(jnp.uint8) for edge in edges).reshape(*front, blocks * BLOCK // 2, 2, outputs)
        self.values = Constant(codes[..., 0, :] | codes[..., 1, :] << 4)
        self.scale = Constant(scale[..., 0, :])
        self.dtype = kernel.dtype

    @partial(jax.jit, inline=True)
    def merge(self) -> jax.Array:
        packed, scale = self.values[...], self.scale[...]
        codes = jnp.stack([packed & 15, packed >> 4], -2)
        values = jnp.asarray(LEVELS, jnp.float32)[codes].reshape(*scale.shape[:-1], BLOCK, scale.shape[-1])
        kernel = (values * scale[..., None, :]).reshape(*packed.shape[:-2], 2 * packed.shape[-2], packed.shape[-1])
        return kernel[..., : self.inputs, :].astype(self.dtype)


FORMATS: Registry[type[Quantized]] = Registry("format of frozen kernels", {"int8": Int8, "nf4": NF4}, others="or full")
FULL = "full"
"""The name of no quantisation."""


def quantize(encoder: Encoder, word: str, groups: Sequence[Group] = ()) -> None:
    """Quantises the frozen kernels of the blocks and the pool, in place: those that no group of the method trains.

    Args:
      word: full (as they are), int8 or nf4.

    Raises UserError for another word, and where no kernel is frozen.
    """
    if word == FULL:
        return
    kind: Callable[..., Quantized] = FORMATS.get(word)
    quantizer = partial(_quantized, kind)
    found = False
    for name, linear in linears(encoder):
        kernel = linear.kernel
        if isinstance(getattr(kernel, "base", None), nnx.Param):
            quantize_base(kernel, quantizer)
        elif isinstance(kernel, nnx.Param) and name.startswith(("stages.", "pool.")) and group_of([f"{name}.kernel"], groups) is None:
            linear.kernel = quantizer(kernel[...])
        else:
            continue
        found = True
    if not found:
        raise UserError(f"encoder.base {word}: the method trains every kernel, and none is left to quantise")


def quantize_base(adapter: Any, quantizer: Callable[[jax.Array], Quantized]) -> None:
    """Quantises an adapter's base, in place, and what is computed from it once."""
    adapter.base = quantizer(adapter.base[...])
    if getattr(adapter, "base_norms", None) is not None:
        adapter.base_norms = Constant(column_norms_squared(adapter.base[...]))


@partial(jax.jit, static_argnums=0)
def _quantized(kind: Callable[..., Quantized], kernel: jax.Array) -> Quantized:
    return kind(kernel)
