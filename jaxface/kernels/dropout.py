"""Dropout with a random key for each sample, so that how a batch is shared among devices changes no sample's mask."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def drop(x: jax.Array, keys: jax.Array, rate: float) -> jax.Array:
    """x [..., B, N, in] with a share `rate` of each sample's values zero and the others larger by as much; keys [B].

    An x without samples (the attention pool's probe) stays as it is.
    """
    if x.ndim < 3:
        return x
    return keep_only(x, jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[-2:]))(keys), rate)


def keep_only(x: jax.Array, kept: jax.Array, rate: float) -> jax.Array:
    """x where it is kept, made larger by the share `rate` that is not, and zero elsewhere."""
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)
