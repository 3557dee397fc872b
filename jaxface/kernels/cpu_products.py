"""Products on a CPU as exact as a graphics card's libraries have them.

Of few rows each value would be formed in one chain of additions: the longer it is, the more rounding it gathers. In half precision a bias
would be added to what is already rounded.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxface.kernels.platform import platform

CHAINS = 8
"""Sums side by side, of as few rows at most."""


def has_few_rows(x: jax.Array, w: jax.Array) -> bool:
    """Whether a CPU would sum each value of `x @ w` in one chain; of more rows than these it sums several at a time."""
    rows = math.prod(x.shape[:-1])
    few = isinstance(rows, int) and rows <= CHAINS and w.ndim == 2 and w.shape[0] % CHAINS == 0
    return few and x.dtype == jnp.float32 and platform() == "cpu"


def few_rows_product(x: jax.Array, w: jax.Array) -> jax.Array:
    """`x @ w` [..., out] by several sums for each value, in the same time."""
    inputs, outputs = w.shape
    x = x.reshape(*x.shape[:-1], CHAINS, inputs // CHAINS)
    return jnp.einsum("...ci,cio->c...o", x, w.reshape(CHAINS, -1, outputs)).sum(0)


def rounds_before_bias(dtype: DTypeLike) -> bool:
    """Whether `x @ w + bias` of that dtype would be rounded twice; a graphics card's libraries add the bias as they multiply."""
    return jnp.finfo(dtype).bits < 32 and platform() == "cpu"


def product_and_bias(x: jax.Array, w: jax.Array, bias: jax.Array) -> jax.Array:
    """`x @ w + bias` in x's dtype, rounded once: x [..., in], w [in, out], bias [out] -> [..., out]."""
    return (jnp.matmul(x, w.astype(x.dtype), preferred_element_type=jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)
