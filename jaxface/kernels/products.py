"""The product of activations with a kernel: dense, and dense plus low rank, with backward passes that move few bytes.

Autodiff's gradient of `b` in `(x @ a) @ b` transposes the large operand; here only the r-wide one is transposed. The name
"product" lets a rematerialisation policy keep these results, the only ones whose recomputation costs a matrix product.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

PRODUCT = "product"


def product(x: jax.Array, kernel: Any) -> jax.Array:
    """`x @ kernel`: x [..., in] times a parameter [in, out], or times an object whose `__rmatmul__` does it."""
    if isinstance(kernel, nnx.Variable):
        kernel = kernel[...]
    if isinstance(kernel, jax.Array):
        return checkpoint_name(x @ kernel.astype(x.dtype), PRODUCT)
    return x @ kernel


def _groups(a: jax.Array, b: jax.Array) -> int:
    return a.shape[-1] // b.shape[-2]


def down(x: jax.Array, a: jax.Array) -> jax.Array:
    """`x @ a`, x [..., in], a [in, g * r]."""
    return x @ a


def up(xa: jax.Array, b: jax.Array, groups: int) -> jax.Array:
    """`xa @ b` where each of `groups` slices of the output has its own slice of xa: [..., g * r], [r, out] -> [..., out]."""
    if groups == 1:
        return xa @ b
    rank, outputs = b.shape
    y = jnp.einsum("...gr,rgo->...go", xa.reshape(*xa.shape[:-1], groups, rank), b.reshape(rank, groups, outputs // groups))
    return y.reshape(*xa.shape[:-1], outputs)


@jax.custom_vjp
def low_rank_product(x: jax.Array, w: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array | None) -> jax.Array:
    """`(x @ w + (x @ a) @ b) * scale` with w frozen: its gradient is never formed.

    Args:
      x: [..., in]
      w: [in, out], constant in the backward pass.
      a: [in, g * r]; g > 1 gives each of g equal slices of the output an adapter of its own (q, k and v of a fused kernel).
      b: [r, out]
      scale: [out], or None for 1.
    """
    return _forward(x, w, a, b, scale)[0]


def _forward(x: jax.Array, w: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array | None) -> tuple[jax.Array, Any]:
    xa = down(x, a)
    y = checkpoint_name(x @ w + up(xa, b, _groups(a, b)), PRODUCT)
    return y if scale is None else y * scale, (x, w, a, b, scale, None if scale is None else y)


def _backward(residuals: Any, g: jax.Array) -> tuple[jax.Array | None, ...]:
    x, w, a, b, scale, y = residuals
    groups, rank = _groups(a, b), b.shape[0]
    rows = tuple(range(g.ndim - 1))
    d_scale = None if scale is None else jnp.sum(g * y, rows)
    gs = jax.lax.optimization_barrier(g if scale is None else g * scale)
    flat_x, flat_g = x.reshape(-1, x.shape[-1]), gs.reshape(-1, gs.shape[-1])
    xa = flat_x @ a  # [n, g r]: cheaper to form again than to keep
    if groups == 1:
        gb = flat_g @ b.T
        db = xa.T @ flat_g
    else:
        slices = flat_g.reshape(-1, groups, g.shape[-1] // groups)
        gb = jnp.einsum("ngo,rgo->ngr", slices, b.reshape(rank, groups, -1)).reshape(-1, groups * rank)
        db = jnp.einsum("ngr,ngo->rgo", xa.reshape(-1, groups, rank), slices).reshape(b.shape)
    da = (gb.T @ flat_x).T
    dx = (flat_g @ w.T + gb @ a.T).reshape(x.shape)
    return dx, None, da, db, d_scale


low_rank_product.defvjp(_forward, _backward)
