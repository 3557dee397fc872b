"""The layers that both towers, the pool and the heads are made of."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from jaxface.kernels.gelu import gelu
from jaxface.kernels.matmul import product
from jaxface.kernels.normalize import normalize


class Linear(nnx.Module):
    """`x @ kernel + bias`. The kernel is an array [in, out], or whatever stands in its place and knows how to be multiplied by x."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(nnx.initializers.xavier_uniform()(rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out]"""
        y = product(x, self.kernel)
        if self.bias is None:
            return y
        if isinstance(self.kernel, nnx.Variable):
            return y + self.bias[...].astype(y.dtype)  # libraries add a bias of the product's dtype as they multiply
        return (y + self.bias[...]).astype(y.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, statistics in float32, epsilon 1e-5 as everywhere in the family."""

    def __init__(self, width: int) -> None:
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]"""
        return normalize(x, self.scale[...], self.bias[...])


class MLP(nnx.Module):
    """Two linear layers with the exact (erf) GELU between them."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        self.fc = Linear(width, hidden, rngs=rngs)
        self.proj = Linear(hidden, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]"""
        return self.proj(gelu(self.fc(x)))
