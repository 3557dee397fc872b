"""Scaled dot-product attention with rotary positions inside: one signature, several implementations, chosen by name.

A kernel is a function `(q, k, v, *, angles=None, causal=False) -> [..., H, N, d]`; `register` makes it known.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxface.errors import UserError
from jaxface.kernels.products import PRODUCT


class AttentionKernel(Protocol):
    """q [..., H, N, d], k and v [..., H, M, d], angles [N, d / 2] radians (then N = M) -> [..., H, N, d]."""

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, *, angles: jax.Array | None = None, causal: bool = False) -> jax.Array: ...


KERNELS: dict[str, AttentionKernel] = {}


def register(name: str, kernel: AttentionKernel) -> AttentionKernel:
    """Makes an attention kernel known by its name."""
    KERNELS[name] = kernel
    return kernel


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, angles: jax.Array | None = None, causal: bool = False, kernel: str = "xla"
) -> jax.Array:
    """softmax(rotate(q) rotate(k)^T / sqrt(d)) v per head, by the named kernel; softmax in float32.

    Raises UserError if there is no kernel of that name.
    """
    if kernel not in KERNELS:
        raise UserError(f"no attention kernel {kernel!r}; known: {', '.join(KERNELS)}")
    return KERNELS[kernel](q, k, v, angles=angles, causal=causal)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Turns the interleaved channel pairs (x0, x1) of x [..., N, d] by angles [N, d / 2], in float32.

    The result's channels are in half-split order (all first members of the pairs, then all second ones): equal for q and k,
    so that their products do not notice, and free where a copy to head-major order happens anyway.
    """
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = x[..., 0::2], x[..., 1::2]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)


def _unrotate(g: jax.Array, angles: jax.Array) -> jax.Array:
    """The transpose of `rotate`: from half-split order back to interleaved pairs."""
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(g, 2, -1)
    return jnp.stack([first * cos + second * sin, second * cos - first * sin], -1).reshape(g.shape).astype(g.dtype)


def _scores(q: jax.Array, k: jax.Array, causal: bool) -> jax.Array:
    """The scores [..., N, M] of scaled q and k, in at least float32."""
    scores = jnp.einsum("...nd,...md->...nm", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
    if causal:
        n, m = scores.shape[-2:]
        scores = jnp.where(jnp.arange(n)[:, None] >= jnp.arange(m), scores, -jnp.inf)
    return scores


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, angles: jax.Array | None, causal: bool) -> jax.Array:
    return _attend_forward(q, k, v, angles, causal)[0]


def _attend_forward(q: jax.Array, k: jax.Array, v: jax.Array, angles: jax.Array | None, causal: bool) -> tuple[jax.Array, tuple]:
    if angles is not None:
        q, k = rotate(q, angles), rotate(k, angles)
    scores = _scores(q, k, causal)
    largest = scores.max(-1, keepdims=True)
    p = jnp.exp(scores - largest)
    total = p.sum(-1, keepdims=True)
    y = jnp.einsum("...nm,...md->...nd", (p / total).astype(v.dtype), v)
    # with these two kept, the backward pass needs no maximum, no sum and no product with v again
    y, log_total = checkpoint_name(y, PRODUCT), checkpoint_name(largest + jnp.log(total), PRODUCT)
    return y, (q, k, v, angles, y, log_total)


def _attend_backward(causal: bool, residuals: tuple, g: jax.Array) -> tuple[jax.Array | None, ...]:
    q, k, v, angles, y, log_total = residuals
    p = jnp.exp(_scores(q, k, causal) - log_total)
    dp = jnp.einsum("...nd,...md->...nm", g, v)
    delta = jnp.sum(g * y, -1, keepdims=True, dtype=p.dtype)
    ds = (p * (dp - delta) * q.shape[-1] ** -0.5).astype(q.dtype)
    dv = jnp.einsum("...nm,...nd->...md", p.astype(g.dtype), g)
    dq = jnp.einsum("...nm,...md->...nd", ds, k)
    dk = jnp.einsum("...nm,...nd->...md", ds, q)
    if angles is not None:
        dq, dk = _unrotate(dq, angles), _unrotate(dk, angles)
    return dq, dk, dv, None


_attend.defvjp(_attend_forward, _attend_backward)


@partial(register, "xla")
def xla_attention(q: jax.Array, k: jax.Array, v: jax.Array, *, angles: jax.Array | None = None, causal: bool = False) -> jax.Array:
    """Plain XLA with a backward pass written out: the scores are formed again instead of kept."""
    return _attend(q, k, v, angles, causal)


@partial(register, "dot_product")
def dot_product_attention(q: jax.Array, k: jax.Array, v: jax.Array, *, angles: jax.Array | None = None, causal: bool = False) -> jax.Array:
    """`jax.nn.dot_product_attention`, the library's own form."""
    if angles is not None:
        q, k = rotate(q, angles), rotate(k, angles)
    batch = q.shape[:-3]
    q, k, v = (jnp.swapaxes(x.reshape(-1, *x.shape[-3:]), 1, 2) for x in (q, k, v))
    y = jax.nn.dot_product_attention(q, k, v, is_causal=causal)
    return jnp.swapaxes(y, 1, 2).reshape(*batch, y.shape[2], y.shape[1], y.shape[3])
