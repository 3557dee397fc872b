"""From tokens to one feature: attention pooling, where one learned probe asks all of them, or a plain readout."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from jaxface.kernels.attention import AUTO, attention, attention_weights
from jaxface.kernels.normalize import EPSILON
from jaxface.models.layers import MLP, LayerNorm, Linear
from jaxface.registry import Registry


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """[..., N, D] -> [..., H, N, D / H]"""
    return jnp.swapaxes(x.reshape(*x.shape[:-1], heads, -1), -3, -2)


def join_heads(x: jax.Array) -> jax.Array:
    """[..., H, N, d] -> [..., N, H d]"""
    x = jnp.swapaxes(x, -3, -2)
    return x.reshape(*x.shape[:-2], -1)


READOUTS: Registry[Callable[[jax.Array, int], jax.Array]] = Registry(
    "readout",
    {
        "tokens": lambda tokens, prefix: tokens,
        "class": lambda tokens, prefix: tokens[..., 0, :],
        "mean": lambda tokens, prefix: tokens[..., prefix:, :].mean(-2),
    },
)
"""What tokens [..., N, D], the patches behind `prefix` others, become where no attention pools them."""


class AttentionPool(nnx.Module):
    """Multi-head attention from a probe to the tokens, then a residual MLP (Perception Encoder, section 2.1; SigLIP's head)."""

    def __init__(self, width: int, heads: int, hidden: int, *, activation: str = "gelu", epsilon: float = EPSILON, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.attention = AUTO
        self.probe = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, width)))
        self.q = Linear(width, width, rngs=rngs)
        self.kv = Linear(width, 2 * width, rngs=rngs)
        self.out = Linear(width, width, rngs=rngs)
        self.norm = LayerNorm(width, epsilon)
        self.mlp = MLP(width, hidden, activation, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """[..., N, D] -> [..., D]; a probe [T, 1, 1, D] for T tasks gives [T, ..., D]."""
        q, k, v = self._parts(tokens)
        q = jnp.broadcast_to(q, (*jnp.broadcast_shapes(q.shape[:-3], k.shape[:-3]), *q.shape[-3:]))
        k, v = (jnp.broadcast_to(x, (*q.shape[:-3], *x.shape[-3:])) for x in (k, v))
        x = self.out(join_heads(attention(q, k, v, kernel=self.attention)))
        return (x + self.mlp(self.norm(x)))[..., 0, :]

    def weights(self, tokens: jax.Array) -> jax.Array:
        """[..., N, D] -> how much the probe takes from every token, [..., H, N]; [T, ..., H, N] of probes for T tasks."""
        q, k, _ = self._parts(tokens)
        return attention_weights(q, k)[..., 0, :]

    def _parts(self, tokens: jax.Array) -> list[jax.Array]:
        """The probe's queries [..., H, 1, d], and the tokens' keys and values [..., H, N, d]."""
        q = split_heads(self.q(self.probe[...].astype(tokens.dtype)), self.heads)
        return [q, *(split_heads(x, self.heads) for x in jnp.split(self.kv(tokens), 2, -1))]
