"""The exact GELU, x * Phi(x), with a backward pass that evaluates erf once."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxface.kernels.normalize import at_least_float32
from jaxface.kernels.plain import is_plain

_SQRT_HALF = 0.5**0.5
_INV_SQRT_TAU = (2 * jnp.pi) ** -0.5


def gelu(x: jax.Array) -> jax.Array:
    """x * Phi(x) with the normal distribution function through erf; same shape and dtype as x, computed in float32 at least."""
    return _value(x) if is_plain() else _gelu(x)


def _value(x: jax.Array) -> jax.Array:
    wide = x.astype(at_least_float32(x.dtype))
    return (wide * (0.5 + 0.5 * jax.lax.erf(wide * _SQRT_HALF))).astype(x.dtype)


_gelu = jax.custom_vjp(_value)


def _forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _value(x), x


def _backward(x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    x = x.astype(at_least_float32(x.dtype))
    cdf = 0.5 + 0.5 * jax.lax.erf(x * _SQRT_HALF)
    pdf = _INV_SQRT_TAU * jnp.exp(-0.5 * x * x)
    return ((g.astype(x.dtype) * (cdf + x * pdf)).astype(g.dtype),)


_gelu.defvjp(_forward, _backward)
