"""The product of activations with a kernel: dense, and dense plus low rank, with backward passes that move few bytes.

Autodiff's gradient of `b` in `(x @ a) @ b` transposes the large operand; here only the r-wide one is transposed. The name
"product" lets a rematerialisation policy keep these results, the only ones whose recomputation costs a matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import DTypeLike

from jaxface.kernels.cpu_products import few_rows_product, has_few_rows
from jaxface.kernels.normalize import at_least_float32
from jaxface.kernels.plain import is_plain
from jaxface.kernels.varying import varying_alike

PRODUCT = "product"
TINY = 1e-18
"""What stands for a gain of 0."""
PARTS = 256
"""Parts of a sum over all tokens, which a graphics card forms side by side."""
NORM_FLOOR = 1e-12
"""Floor of a column's squared length: a zero column of the base must not divide by zero."""


class Compressed(Protocol):
    """A quantised frozen kernel [in, out]: it becomes an array for one product at a time, in each pass anew."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def merge(self) -> jax.Array: ...


AnyKernel = jax.Array | Compressed
"""A frozen kernel [in, out], as an array or in fewer bits."""
Factor = jax.Array | None
"""Of every output feature, [out], or nothing."""


def dense(w: AnyKernel, dtype: DTypeLike) -> jax.Array:
    """The kernel as an array [in, out]."""
    return (w if isinstance(w, jax.Array) else w.merge()).astype(dtype)


def product(x: jax.Array, kernel: Any) -> jax.Array:
    """`x @ kernel`: x [..., in] times a parameter [in, out], or times an object whose `__rmatmul__` does it."""
    if isinstance(kernel, nnx.Variable):
        kernel = kernel[...]
    if isinstance(kernel, jax.Array):
        w = kernel.astype(x.dtype)
        return checkpoint_name(few_rows_product(x, w) if has_few_rows(x, w) else x @ w, PRODUCT)
    return x @ kernel


def unrounded_product(x: jax.Array, w: Any) -> jax.Array:
    """`x @ w` in float32 whatever x's dtype is, for something to be added before it is rounded; w is frozen. Its gradient has x's dtype."""
    w = jax.lax.stop_gradient(dense(w[...] if isinstance(w, nnx.Variable) else w, x.dtype))
    return _in_float32(x, w) if is_plain() else _unrounded_product(*varying_alike(x, w))


def _in_float32(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.matmul(x, w, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _unrounded_product(x: jax.Array, w: jax.Array) -> jax.Array:
    return _in_float32(x, w)


def _unrounded_backward(residuals: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, None]:
    x, w = residuals
    return g.astype(x.dtype) @ w.T, None


_unrounded_product.defvjp(lambda x, w: (_in_float32(x, w), (x, w)), _unrounded_backward)


def compressed_product(x: jax.Array, w: Compressed) -> jax.Array:
    """`x @ w`: x [..., in] times a quantised kernel. The backward pass keeps neither x nor an array of the kernel."""
    return x @ jax.lax.stop_gradient(dense(w, x.dtype)) if is_plain() else _compressed_product(*varying_alike(x, w))


@jax.custom_vjp
def _compressed_product(x: jax.Array, w: Compressed) -> jax.Array:
    return checkpoint_name(x @ dense(w, x.dtype), PRODUCT)


_compressed_product.defvjp(lambda x, w: (_compressed_product(x, w), w), lambda w, g: (g @ dense(w, g.dtype).T, None))


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
    if not isinstance(tokens, int):  # a program for any batch
        return False
    return jnp.finfo(dtype).bits >= 32 and tokens * (inputs + outputs) > inputs * outputs


def low_rank_product(
    x: jax.Array,
    w: AnyKernel,
    a: jax.Array,
    b: jax.Array,
    gain: Factor = None,
    bias: Factor = None,
    *,
    lengths: Callable[[], jax.Array] | None = None,
) -> jax.Array:
    """`x @ (w + a b) * gain + bias` with w frozen: its gradient is never formed.

    Args:
      x: [..., in]
      w: [in, out], constant in the backward pass, as an array or quantised.
      a: [in, g * r]; g > 1 gives each of g equal slices of the output an adapter of its own (q, k and v of a fused kernel).
      b: [r, out]; both in the dtype that they train in: x's is taken where they are multiplied.
      gain: [out], or None for 1.
      bias: [out], added before the result is rounded to x's dtype, or None.
      lengths: gives the lengths [out] of the columns of w + a b, by which the gain is to be divided, constants in the backward pass. Not
        asked where the sum is formed, which shows them.
    """
    summed = sums_kernel(x.size // x.shape[-1], *w.shape, x.dtype)
    if gain is not None and lengths is not None and not summed:
        gain = gain / lengths()
    if is_plain():
        return _forward(x, jax.lax.stop_gradient(dense(w, x.dtype)), a, b, gain, bias, summed, summed and lengths is not None)[0]
    return _low_rank_product(*varying_alike(x, w, a, b, gain, bias), summed, summed and lengths is not None)


def _kernel(w: AnyKernel, a: jax.Array, b: jax.Array, gain: Factor, unit_columns: bool) -> tuple[jax.Array, Factor]:
    """(w + a b) * scale as one array [in, out], and the scale [out]: the gain, over the columns' lengths if they are to be 1."""
    kernel = dense(w, b.dtype) + up(a, b, _groups(a, b))
    if gain is None:
        return kernel, None
    scale = gain * jax.lax.rsqrt(jnp.maximum(jnp.sum(kernel * kernel, 0), NORM_FLOOR)) if unit_columns else gain
    return kernel * scale, scale


def _is_wide(x: jax.Array, w: Any) -> bool:
    """Whether activations x [..., in] are so many that a pass over them, or over the result, costs more than one over the kernel."""
    count = x.size // x.shape[-1]
    return isinstance(count, int) and count > max(w.shape)


def _roomy(x: jax.Array, more: int) -> jax.Array:
    """x [n, in] with zeros beside it, [n, in + more], row by row: left to itself the compiler transposes some of them as it writes."""
    return jax.lax.optimization_barrier(with_layout_constraint(jnp.pad(x, ((0, 0), (0, more))), Layout((0, 1))))


def _beside(x: jax.Array, a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x [n, in] with x a [n, r] beside it in one array [n, in + r], which is written once: what makes x makes the room; and x a."""
    rank = a.shape[1]
    x = _roomy(x, rank)
    xa = x @ jnp.pad(a, ((0, rank), (0, 0)))
    return jax.lax.dynamic_update_slice(x, xa, (0, x.shape[1] - rank)), xa


def _joined(x: jax.Array, w: jax.Array, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x [n, in] times w + a b, as one product of joined operands: [x | x a] [w; b], and x a."""
    joined, xa = _beside(x, a)
    return joined @ jnp.concatenate([w, b]), xa


@partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _low_rank_product(x: jax.Array, w: AnyKernel, a: jax.Array, b: jax.Array, gain: Factor, bias: Factor, *how: bool) -> jax.Array:
    whole = how[0] or jnp.finfo(x.dtype).bits >= 32
    return _forward(x, w, a, b, gain, bias, *how)[0] if whole else _rounded_once(x, w, a, b, gain, bias)


def _rounded_once(x: jax.Array, w: AnyKernel, a: jax.Array, b: jax.Array, gain: Factor, bias: Factor) -> jax.Array:
    """`_forward` where nobody asks for a gradient, in float32 up to the end: if x W were rounded first, nothing would be left of an update,
    or of a gain, that changes a value by less than half a unit in its last place."""
    if _is_wide(x, w) and _groups(a, b) == 1:
        if gain is None:
            return _wide_forward(x, w, a, b, gain, bias)[0]
        joined = _beside(x.reshape(-1, x.shape[-1]), a.astype(x.dtype))[0]
        y = _in_float32(joined, jnp.concatenate([dense(w, x.dtype), b.astype(x.dtype)])).reshape(*x.shape[:-1], -1)
    else:
        xa = up(x @ a.astype(x.dtype), b.astype(x.dtype), _groups(a, b))
        y = _in_float32(x, dense(w, x.dtype)) + xa.astype(jnp.float32)
    return finished(y, gain, bias).astype(x.dtype)


def _forward(
    x: jax.Array, w: AnyKernel, a: jax.Array, b: jax.Array, gain: Factor, bias: Factor, summed: bool, unit_columns: bool
) -> tuple[jax.Array, tuple[Any, ...]]:
    if summed:
        # with a gain of exactly 0 there would be nothing left of y for its gradient, which divides by it
        gain = None if gain is None else jnp.where(gain == 0, TINY, gain).astype(gain.dtype)
        y = checkpoint_name(x @ _kernel(w, a, b, gain, unit_columns)[0], PRODUCT)
        return finished(y, None, bias), (x, w, a, b, gain, bias, None if gain is None else y, None)
    if _is_wide(x, w) and _groups(a, b) == 1:
        return _wide_forward(x, w, a, b, gain, bias)
    # few rows: the sum, which the magnitude's gradient is taken from, costs little in float32
    wider = at_least_float32(x.dtype)
    multiply = partial(jnp.matmul, preferred_element_type=wider)
    xa, b_wider = multiply(x, a.astype(x.dtype)), b.astype(x.dtype).astype(wider)
    y = checkpoint_name(multiply(x, dense(w, x.dtype)) + up(xa, b_wider, _groups(a, b)), PRODUCT)
    return finished(y, gain, bias).astype(x.dtype), (x, w, a, b, gain, bias, None if gain is None else y, None)


def _wide_forward(x: jax.Array, w: AnyKernel, a: jax.Array, b: jax.Array, gain: Factor, bias: Factor) -> tuple[jax.Array, tuple[Any, ...]]:
    """One product of the joined operands: [x | x a] [w; b]."""
    rows = x.reshape(-1, x.shape[-1])
    y, xa = _joined(rows, dense(w, x.dtype), a.astype(x.dtype), b.astype(x.dtype))
    y = checkpoint_name(y.reshape(*x.shape[:-1], -1), PRODUCT)
    # what is kept is the result before its gain: whoever reads it next multiplies as it reads
    return finished(y, gain, bias), (x, w, a, b, gain, bias, None if gain is None else y, checkpoint_name(xa, PRODUCT))


def finished(y: jax.Array, gain: Factor, bias: Factor = None) -> jax.Array:
    """y [..., out] times the gain, and the bias added, rounded once; whoever reads it next does so as it reads."""
    wide = y if gain is None else y.astype(gain.dtype) * gain
    if bias is not None:
        wider = at_least_float32(wide.dtype)
        wide = wide.astype(wider) + bias.astype(wider)
    return wide.astype(y.dtype)


def _backward(summed: bool, unit_columns: bool, residuals: tuple[Any, ...], g: jax.Array) -> tuple[jax.Array | None, ...]:
    x, w, a, b, gain, bias, y, xa = residuals
    groups, rank, shape, an = _groups(a, b), b.shape[0], x.shape, a.astype(x.dtype)
    x, g = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    d_bias = None if bias is None else jnp.sum(g.astype(bias.dtype), 0)
    if xa is not None:
        dx, da, db, d_gain = _wide_backward(x, w, a, b, gain, y, xa, g)
        return dx.reshape(shape), None, da, db, d_gain, d_bias
    # barriers keep XLA from transposing wide arrays in the place of narrow ones
    barrier = jax.lax.optimization_barrier
    g = barrier(g)
    if summed:  # y is the gain times what it would be without; the scale goes with the narrow arrays
        kernel, scale = _kernel(w, a, b, gain, unit_columns)
        bs = b if scale is None else b * scale
        d_gain = None if gain is None else jnp.sum(g * y.reshape(g.shape), 0) / gain
    else:
        kernel, scale, bs = None, None, b.astype(g.dtype)
        d_gain = None if gain is None else jnp.sum(g.astype(gain.dtype) * y.reshape(g.shape).astype(gain.dtype), 0)
        g = finished(g, gain)
    xa = barrier(x @ an)  # [n, g r]
    if groups == 1:
        gb = barrier(g @ bs.T)
        db = jnp.matmul(barrier(xa.T), g, preferred_element_type=b.dtype)
    else:
        slices = g.reshape(-1, groups, g.shape[-1] // groups)
        gb = jnp.einsum("ngo,rgo->ngr", slices, bs.reshape(rank, groups, -1)).reshape(-1, groups * rank)
        db = jnp.einsum("ngr,ngo->rgo", xa.reshape(-1, groups, rank), slices, preferred_element_type=b.dtype).reshape(b.shape)
    da = barrier(jnp.matmul(barrier(gb.T), x, preferred_element_type=a.dtype)).T
    dx = g @ dense(w, g.dtype).T + gb @ an.T if kernel is None else g @ kernel.T
    return dx.reshape(shape), None, da, db if scale is None else db * scale, d_gain, d_bias


def _wide_backward(
    x: jax.Array, w: AnyKernel, a: jax.Array, b: jax.Array, gain: Factor, y: Factor, xa: jax.Array, g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, Factor]:
    """The gradients of x [n, in], a, b and the gain: each wide array is made by one pass, with whatever else that pass can give."""
    rank, inputs, outputs = b.shape[0], x.shape[1], g.shape[1]

    def room(array: jax.Array) -> jax.Array:
        return jnp.pad(array, ((0, 0), (0, rank)))

    d_gain = None
    if gain is not None:
        if outputs > inputs:
            g = jax.lax.optimization_barrier(g)  # what makes g and this sum over columns take twice as long in one pass as in two
        parts = math.gcd(len(g), PARTS)
        terms = room(g).astype(gain.dtype) * room(y.reshape(g.shape)).astype(gain.dtype)
        d_gain = jax.lax.optimization_barrier(jnp.sum(terms.reshape(parts, -1, outputs + rank), 1)).sum(0)[:outputs]
        g = finished(g, gain)
    joined, gb = _beside(g, b.astype(g.dtype).T)
    db = jnp.matmul(xa.T, joined, preferred_element_type=b.dtype)[:, :outputs]
    # x that is wider than the result was made by the pass that makes g of the product before, which gives arrays of one shape
    x = _roomy(x, rank) if inputs > outputs else x
    da = jnp.matmul(gb.T, x, preferred_element_type=a.dtype)[:, :inputs].T
    dx = joined @ jnp.concatenate([dense(w, g.dtype), a.astype(g.dtype)], 1).T
    return dx, da, db, d_gain


_low_rank_product.defvjp(_forward, _backward)
