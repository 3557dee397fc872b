"""Layer normalisation with a backward pass written out."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxface.kernels.plain import is_plain
from jaxface.kernels.varying import varying_alike

EPSILON = 1e-5


def at_least_float32(dtype: DTypeLike) -> np.dtype:
    """The dtype, or float32 in the place of half precision: what statistics are taken in."""
    return np.dtype(np.float64 if dtype == jnp.float64 else np.float32)


def _standardize(x: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """Zero mean and unit variance over the last axis, in float32, and 1 / standard deviation [..., 1]."""
    x = x.astype(at_least_float32(x.dtype))
    mean = x.mean(-1, keepdims=True)
    centred = x - mean
    inverse = jax.lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + epsilon)
    return centred * inverse, inverse


def normalize(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float = EPSILON) -> jax.Array:
    """Layer normalisation of x [..., D] with gain and shift [D]; statistics in float32, the result in x's dtype."""
    return (_value if is_plain() else _normalize)(*varying_alike(x, scale, bias), epsilon)


def _value(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    return (_standardize(x, epsilon)[0] * scale + bias).astype(x.dtype)


_normalize = partial(jax.custom_vjp, nondiff_argnums=(3,))(_value)


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _value(x, scale, bias, epsilon), (x, scale)


def _backward(epsilon: float, residuals: tuple[jax.Array, ...], g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale = residuals
    y, inverse = _standardize(x, epsilon)
    rows = tuple(range(g.ndim - 1))
    gs = g.astype(y.dtype) * scale
    dx = inverse * (gs - gs.mean(-1, keepdims=True) - y * jnp.mean(gs * y, -1, keepdims=True))
    y = y if x.dtype == y.dtype else _standardized_apart(x)
    d_scale = jnp.sum(g.astype(y.dtype) * y, rows).astype(scale.dtype)
    d_bias = jnp.sum(g.astype(y.dtype), rows).astype(scale.dtype)
    return dx.astype(x.dtype), d_scale, d_bias


def _standardized_apart(x: jax.Array) -> jax.Array:
    """`_standardize` of x in half precision from each row's moments, so that the sums over rows are one pass over x and no float32 array.

    What float32 loses to a large mean is less than x lost when it was rounded.
    """
    x = x.astype(jnp.float32)
    mean, square = x.mean(-1, keepdims=True), jnp.mean(x * x, -1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0) + EPSILON)
    mean, inverse = jax.lax.optimization_barrier((mean, inverse))
    return (x - mean) * inverse


_normalize.defvjp(_forward, _backward)
