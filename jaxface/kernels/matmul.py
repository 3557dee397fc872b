"""The product of activations with a kernel: dense, and dense plus low rank, with backward passes that move few bytes.

Autodiff's gradient of `b` in `(x @ a) @ b` transposes the large operand; here only the r-wide one is transposed. The name
"product" lets a rematerialisation policy keep these results, the only ones whose recomputation costs a matrix product.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

PRODUCT = "product"
NORM_FLOOR = 1e-12
"""Floor of a column's squared length: a zero column of the base must not divide by zero."""


class Compressed(Protocol):
    """A quantised frozen kernel [in, out]: it becomes an array for one product at a time, in each pass anew."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def merge(self) -> jax.Array: ...


def dense(w: jax.Array | Compressed, dtype: DTypeLike) -> jax.Array:
    """The kernel as an array [in, out]."""
    return (w if isinstance(w, jax.Array) else w.merge()).astype(dtype)


def product(x: jax.Array, kernel: Any) -> jax.Array:
    """`x @ kernel`: x [..., in] times a parameter [in, out], or times an object whose `__rmatmul__` does it."""
    if isinstance(kernel, nnx.Variable):
        kernel = kernel[...]
    if isinstance(kernel, jax.Array):
        return checkpoint_name(x @ kernel.astype(x.dtype), PRODUCT)
    return x @ kernel


@jax.custom_vjp
def compressed_product(x: jax.Array, w: Compressed) -> jax.Array:
    """`x @ w`: x [..., in] times a quantised kernel. The backward pass keeps neither x nor an array of the kernel."""
    return checkpoint_name(x @ dense(w, x.dtype), PRODUCT)


compressed_product.defvjp(lambda x, w: (compressed_product(x, w), w), lambda w, g: (g @ dense(w, g.dtype).T, None))


def _groups(a: jax.Array, b: jax.Array) -> int:
    return a.shape[-1] // b.shape[-2]


def up(xa: jax.Array, b: jax.Array, groups: int) -> jax.Array:
    """`xa @ b` where each of `groups` slices of the output has its own slice of xa: [..., g * r], [r, out] -> [..., out]."""
    if groups == 1:
        return xa @ b
    rank, outputs = b.shape
    y = jnp.einsum("...gr,rgo->...go", xa.reshape(*xa.shape[:-1], groups, rank), b.reshape(rank, groups, outputs // groups))
    return y.reshape(*xa.shape[:-1], outputs)


def sums_kernel(tokens: float, inputs: int, outputs: int, dtype: DTypeLike) -> bool:
    """Whether W + A B is worth forming: it costs in * out * r, the two thin products tokens * (in + out) * r.

    Never in bf16, where the sum would round small updates away.
    """
    return dtype == jnp.float32 and tokens * (inputs + outputs) > inputs * outputs


def low_rank_product(
    x: jax.Array,
    w: jax.Array | Compressed,
    a: jax.Array,
    b: jax.Array,
    gain: jax.Array | None = None,
    *,
    lengths: Callable[[], jax.Array] | None = None,
) -> jax.Array:
    """`x @ (w + a b) * gain` with w frozen: its gradient is never formed.

    Args:
      x: [..., in]
      w: [in, out], constant in the backward pass, as an array or quantised.
      a: [in, g * r]; g > 1 gives each of g equal slices of the output an adapter of its own (q, k and v of a fused kernel).
      b: [r, out]
      gain: [out], or None for 1.
      lengths: gives the lengths [out] of the columns of w + a b, by which the gain is to be divided, constants in the backward pass. Not
        asked where the sum is formed, which shows them.
    """
    summed = sums_kernel(x.size // x.shape[-1], *w.shape, x.dtype)
    if gain is not None and lengths is not None and not summed:
        gain = (gain / lengths()).astype(x.dtype)
    return _low_rank_product(x, w, a, b, gain, summed, summed and lengths is not None)


def _kernel(
    w: jax.Array | Compressed, a: jax.Array, b: jax.Array, gain: jax.Array | None, unit_columns: bool
) -> tuple[jax.Array, jax.Array | None]:
    """(w + a b) * scale as one array [in, out], and the scale [out]: the gain, over the columns' lengths if they are to be 1."""
    kernel = dense(w, a.dtype) + up(a, b, _groups(a, b))
    if gain is None:
        return kernel, None
    scale = gain * jax.lax.rsqrt(jnp.maximum(jnp.sum(kernel * kernel, 0), NORM_FLOOR)) if unit_columns else gain
    return kernel * scale, scale


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _low_rank_product(
    x: jax.Array, w: jax.Array | Compressed, a: jax.Array, b: jax.Array, gain: jax.Array | None, summed: bool, unit_columns: bool
) -> jax.Array:
    return _forward(x, w, a, b, gain, summed, unit_columns)[0]


def _forward(
    x: jax.Array, w: jax.Array | Compressed, a: jax.Array, b: jax.Array, gain: jax.Array | None, summed: bool, unit_columns: bool
) -> tuple[jax.Array, tuple[Any, ...]]:
    if summed:
        y = x @ _kernel(w, a, b, gain, unit_columns)[0]
    else:
        y = x @ dense(w, x.dtype) + up(x @ a, b, _groups(a, b))
        y = y if gain is None else y * gain
    y = checkpoint_name(y, PRODUCT)
    return y, (x, w, a, b, gain, None if gain is None else y)


def _backward(summed: bool, unit_columns: bool, residuals: tuple[Any, ...], g: jax.Array) -> tuple[jax.Array | None, ...]:
    x, w, a, b, gain, y = residuals
    groups, rank = _groups(a, b), b.shape[0]
    shape = x.shape
    g = jax.lax.optimization_barrier(g)
    x, g = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    kernel, scale = _kernel(w, a, b, gain, unit_columns) if summed else (None, gain)
    barrier = jax.lax.optimization_barrier
    # barriers stop XLA from moving the transposes of the narrow arrays over to the wide ones
    xa = barrier(x @ a)  # [n, g r]: cheaper to form again than to keep
    # the scale goes with the narrow arrays, so that no pass over [n, out] is spent on it
    bs = b if scale is None else b * scale
    if groups == 1:
        gb = barrier(g @ bs.T)
        db = barrier(xa.T) @ g
    else:
        slices = g.reshape(-1, groups, g.shape[-1] // groups)
        gb = jnp.einsum("ngo,rgo->ngr", slices, bs.reshape(rank, groups, -1)).reshape(-1, groups * rank)
        db = jnp.einsum("ngr,ngo->rgo", xa.reshape(-1, groups, rank), slices).reshape(b.shape)
    da = barrier(barrier(gb.T) @ x).T
    if kernel is not None:
        dx = g @ kernel.T
    else:
        dx = (g if scale is None else g * scale) @ dense(w, g.dtype).T + gb @ a.T
    if scale is None:
        return dx.reshape(shape), None, da, db, None
    # y is the gain times what it would be without, so the gain's gradient is sum(g * y) / gain
    d_gain = jnp.sum(g * y.reshape(g.shape), 0) / jnp.where(gain == 0, 1, gain)
    return dx.reshape(shape), None, da, db * scale, d_gain


_low_rank_product.defvjp(_forward, _backward)
