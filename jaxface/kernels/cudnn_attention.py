"""cuDNN's fused attention, through `jax.nn.dot_product_attention`, rotary positions applied before it."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxface.kernels.attention import Call, register, token_major


@cache
def _has_it() -> bool:
    """Whether the GPUs here are of a generation that cuDNN's fused attention runs on: Ampere or newer."""
    try:
        devices = jax.local_devices(backend="gpu")
    except RuntimeError:
        return True  # none: a program is compiled for one that is elsewhere
    return all(float(device.compute_capability) >= 8 for device in devices)


def _suits(call: Call) -> bool:
    return call.platform == "gpu" and call.dtype.itemsize == 2 and call.head_width % 8 == 0 and call.head_width <= 128 and _has_it()


@partial(register, "cudnn", suits=_suits, multiple=2, half=True)
def cudnn_attention(q: jax.Array, k: jax.Array, v: jax.Array, *, angles: jax.Array | None = None, causal: bool = False) -> jax.Array:
    """Fused attention in half precision; d is a multiple of 8, and at most 128, or 256 from Hopper on."""
    keys = k.shape[-2] if angles is None else angles.shape[-2]
    return token_major(partial(_even, keys=keys, causal=causal), q, k, v, angles)


def _even(q: jax.Array, k: jax.Array, v: jax.Array, *, keys: int, causal: bool) -> jax.Array:
    """Attends to the first `keys` of [B, N, H, d], with a row added to odd lengths, which JAX refuses where there is a gradient."""
    queries = q.shape[1]
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) if x.shape[1] % 2 else x for x in (q, k, v))
    lengths: dict[str, Any] = {}
    if k.shape[1] > keys:
        # queries are all of the array's: those of added rows give what is finite, and nobody reads it
        lengths = {"query_seq_lengths": jnp.full(len(q), q.shape[1]), "key_value_seq_lengths": jnp.full(len(k), keys)}
    y = jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn", **lengths)
    return y if y.shape[1] == queries else y[:, :queries]
