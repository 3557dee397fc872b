"""Attention in tiles that stay on the chip, forward and backward, with rotary positions applied as q and k are loaded.

FlashAttention-2 (Dao 2023, algorithms 1 and 2) in Pallas, lowered through Triton for NVIDIA GPUs; on a CPU the same kernels are
interpreted, which checks their arithmetic and is slow. q and k are read as channel pairs [N, d / 2, 2], so that a rotation is four
products, and scores are the sum of two matrix products, one for each member of the pairs. Sides of tiles are powers of two, as Triton
asks: what lies beyond an array is read as zero and never written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxface.kernels.attention import register
from jaxface.kernels.matmul import PRODUCT

SMALLEST = 16
"""Of a tile's sides: what a tensor core multiplies."""
MASKED = -1e30
"""A score that no exponential lets through. Finite: minus infinity less itself is not a number."""

Ref = Any
Rows = tuple[Any, jax.Array]
"""A tile's rows as an index, and which of them exist."""


@dataclass(frozen=True)
class Shape:
    """What the kernels know before they are compiled: N, M, d, and the mask."""

    queries: int
    keys: int
    width: int
    causal: bool

    @property
    def scale(self) -> float:
        """Of scores, in powers of two."""
        return self.width**-0.5 * math.log2(math.e)

    def tile(self, length: int) -> int:
        """Rows of a tile: 64 for heads of up to 64 channels, fewer for wider ones, so that all fits into 99 KiB, or for a short array."""
        largest = max(SMALLEST, 4096 // max(64, pl.next_power_of_2(self.width)))
        return min(largest, max(SMALLEST, pl.next_power_of_2(length)))

    def query_rows(self, tile: jax.Array) -> Rows:
        return _rows(tile, self.tile(self.queries), self.queries)

    def key_rows(self, tile: jax.Array) -> Rows:
        return _rows(tile, self.tile(self.keys), self.keys)

    @property
    def query_tiles(self) -> int:
        return pl.cdiv(self.queries, self.tile(self.queries))

    @property
    def key_tiles(self) -> int:
        return pl.cdiv(self.keys, self.tile(self.keys))


def _rows(tile: jax.Array, size: int, length: int) -> Rows:
    return pl.ds(tile * size, size), tile * size + jnp.arange(size) < length


def _load(ref: Ref, rows: Rows, width: int, *part: int) -> jax.Array:
    """A tile of ref [length, width] (or of one member of its pairs), zeros beyond both."""
    index, exists = rows
    mask = exists[:, None] & (jnp.arange(ref.shape[1]) < width)
    return triton.load(ref.at[(index, slice(None), *map(jnp.int32, part))], mask=mask, other=0)


def _store(ref: Ref, rows: Rows, width: int, value: jax.Array, *part: int) -> None:
    index, exists = rows
    mask = exists[:, None] & (jnp.arange(ref.shape[1]) < width)
    triton.store(ref.at[(index, slice(None), *map(jnp.int32, part))], value.astype(ref.dtype), mask=mask)


def _load_vector(ref: Ref, rows: Rows) -> jax.Array:
    return triton.load(ref.at[rows[0]], mask=rows[1], other=0)


def _turned(first: jax.Array, second: jax.Array, turns: Sequence[Ref], rows: Rows, width: int, sign: int) -> tuple[jax.Array, jax.Array]:
    """Pairs turned by the angles whose cosines and sines are given, or back; as they are if none are."""
    if not turns:
        return first, second
    cos, sin = (_load(turn, rows, width) for turn in turns)
    sin = sin * sign
    return first * cos - second * sin, second * cos + first * sin


def _load_pairs(ref: Ref, turns: Sequence[Ref], rows: Rows, shape: Shape) -> tuple[jax.Array, jax.Array]:
    """A tile of q or k, turned: first and second members [rows, d / 2] of the channel pairs."""
    pairs = _load(ref, rows, shape.width // 2, 0), _load(ref, rows, shape.width // 2, 1)
    first, second = _turned(*pairs, turns, rows, shape.width // 2, 1)
    return first.astype(ref.dtype), second.astype(ref.dtype)


def _store_pairs(ref: Ref, turns: Sequence[Ref], rows: Rows, shape: Shape, pairs: tuple[jax.Array, jax.Array]) -> None:
    """Writes a gradient of q or k, turned back."""
    for part, value in enumerate(_turned(*pairs, turns, rows, shape.width // 2, -1)):
        _store(ref, rows, shape.width // 2, value, part)


def _scores(q: tuple[jax.Array, jax.Array], k: tuple[jax.Array, jax.Array], rows: jax.Array, columns: jax.Array, shape: Shape) -> jax.Array:
    """Scaled scores in powers of two of a tile of queries and one of keys."""
    scores = sum(triton.dot(left, right, trans_b=True) for left, right in zip(q, k, strict=True)) * shape.scale
    row = rows * shape.tile(shape.queries) + jnp.arange(shape.tile(shape.queries))
    column = columns * shape.tile(shape.keys) + jnp.arange(shape.tile(shape.keys))
    allowed = column[None, :] < shape.keys
    if shape.causal:
        allowed = allowed & (row[:, None] >= column[None, :])
    return jnp.where(allowed, scores, MASKED)


def _key_tiles_seen(rows: jax.Array, shape: Shape) -> jax.Array | int:
    """How many tiles of keys the queries of a tile may look at."""
    if not shape.causal:
        return shape.key_tiles
    last = (rows + 1) * shape.tile(shape.queries)
    return jnp.minimum(shape.key_tiles, jax.lax.div(last + shape.tile(shape.keys) - 1, shape.tile(shape.keys)))


def _forward_kernel(q_ref: Ref, k_ref: Ref, v_ref: Ref, *refs: Ref, shape: Shape) -> None:
    """One tile of queries against all keys: the result, and log2 of the sum of the exponentials."""
    *turns, o_ref, sums_ref = refs
    tile = pl.program_id(0)
    rows = shape.query_rows(tile)
    q = _load_pairs(q_ref, turns, rows, shape)

    def add(index: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        y, total, peak = carry
        columns = shape.key_rows(index)
        scores = _scores(q, _load_pairs(k_ref, turns, columns, shape), tile, index, shape)
        new = jnp.maximum(peak, scores.max(1))
        p, old = jnp.exp2(scores - new[:, None]), jnp.exp2(peak - new)
        v = _load(v_ref, columns, shape.width)
        return y * old[:, None] + triton.dot(p.astype(v.dtype), v), total * old + p.sum(1), new

    size = shape.tile(shape.queries)
    start = jnp.zeros((size, v_ref.shape[1]), jnp.float32), jnp.zeros(size, jnp.float32), jnp.full(size, MASKED, jnp.float32)
    y, total, peak = jax.lax.fori_loop(0, _key_tiles_seen(tile, shape), add, start)
    _store(o_ref, rows, shape.width, y / total[:, None])
    triton.store(sums_ref.at[rows[0]], peak + jnp.log2(total), mask=rows[1])


def _query_gradient_kernel(q_ref: Ref, k_ref: Ref, v_ref: Ref, g_ref: Ref, sums_ref: Ref, means_ref: Ref, *refs: Ref, shape: Shape) -> None:
    """dq of one tile of queries."""
    *turns, dq_ref = refs
    tile = pl.program_id(0)
    rows = shape.query_rows(tile)
    q = _load_pairs(q_ref, turns, rows, shape)
    g, sums, means = _load(g_ref, rows, shape.width), _load_vector(sums_ref, rows), _load_vector(means_ref, rows)

    def add(index: jax.Array, dq: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        columns = shape.key_rows(index)
        k = _load_pairs(k_ref, turns, columns, shape)
        p = jnp.exp2(_scores(q, k, tile, index, shape) - sums[:, None])
        ds = p * (triton.dot(g, _load(v_ref, columns, shape.width), trans_b=True) - means[:, None])
        return tuple(d + triton.dot(ds.astype(part.dtype), part) for d, part in zip(dq, k, strict=True))

    zero = jnp.zeros(q[0].shape, jnp.float32)
    dq = jax.lax.fori_loop(0, _key_tiles_seen(tile, shape), add, (zero, zero))
    _store_pairs(dq_ref, turns, rows, shape, tuple(d * shape.width**-0.5 for d in dq))


def _key_gradient_kernel(q_ref: Ref, k_ref: Ref, v_ref: Ref, g_ref: Ref, sums_ref: Ref, means_ref: Ref, *refs: Ref, shape: Shape) -> None:
    """dk and dv of one tile of keys."""
    *turns, dk_ref, dv_ref = refs
    tile = pl.program_id(0)
    columns = shape.key_rows(tile)
    k, v = _load_pairs(k_ref, turns, columns, shape), _load(v_ref, columns, shape.width)

    def add(index: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        dv, *dk = carry
        rows = shape.query_rows(index)
        q, g = _load_pairs(q_ref, turns, rows, shape), _load(g_ref, rows, shape.width)
        p = jnp.exp2(_scores(q, k, index, tile, shape) - _load_vector(sums_ref, rows)[:, None])
        dv = dv + triton.dot(p.astype(g.dtype), g, trans_a=True)
        ds = p * (triton.dot(g, v, trans_b=True) - _load_vector(means_ref, rows)[:, None])
        return dv, *(d + triton.dot(ds.astype(part.dtype), part, trans_a=True) for d, part in zip(dk, q, strict=True))

    first = jax.lax.div(tile * shape.tile(shape.keys), shape.tile(shape.queries)) if shape.causal else 0
    zero = jnp.zeros(k[0].shape, jnp.float32)
    dv, *dk = jax.lax.fori_loop(first, shape.query_tiles, add, (jnp.zeros(v.shape, jnp.float32), zero, zero))
    _store(dv_ref, columns, shape.width, dv)
    _store_pairs(dk_ref, turns, columns, shape, tuple(d * shape.width**-0.5 for d in dk))


def _run(
    kernel: Callable, name: str, shape: Shape, products: int, tiles: int, arrays: Sequence[jax.Array], out: Sequence[jax.ShapeDtypeStruct]
) -> Any:
    """Runs a kernel over all heads and tiles.

    Args:
      products: how many products of N x M x d it makes, for XLA's schedule.
      arrays: [heads, N, ...] each, or [1, N, ...] for what all heads share.
      out: shapes [heads, N, ...] of the results.
    """
    heads = out[0].shape[0]

    def spec(array: Any) -> pl.BlockSpec:
        _, rows, *rest = array.shape
        padded = (rows, *(max(SMALLEST, pl.next_power_of_2(side)) for side in rest[:1]), *rest[1:])
        shared = array.shape[0] == 1
        return pl.BlockSpec((None, *padded), lambda tile, head: (0 if shared else head, *(0 for _ in padded)))

    def call(*arrays: jax.Array, interpret: bool) -> Any:
        cost = pl.CostEstimate(
            flops=2 * products * heads * shape.queries * shape.keys * shape.width,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*arrays, *out)),
            transcendentals=heads * shape.queries * shape.keys,
        )
        return pl.pallas_call(
            partial(kernel, shape=shape),
            grid=(tiles, heads),
            in_specs=[spec(array) for array in arrays],
            out_specs=[spec(array) for array in out],
            out_shape=list(out),
            compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
            cost_estimate=cost,
            interpret=interpret,
            name=name,
        )(*arrays)

    return jax.lax.platform_dependent(*arrays, cpu=partial(call, interpret=True), default=partial(call, interpret=False))


def _pairs(x: jax.Array) -> jax.Array:
    return x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2)


def _turns(angles: jax.Array | None) -> tuple[jax.Array, ...]:
    return () if angles is None else (jnp.cos(angles)[None], jnp.sin(angles)[None])


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, angles: jax.Array | None, shape: Shape) -> jax.Array:
    """[G, N, d], [G, M, d], [G, M, d] -> [G, N, d]"""
    return _forward(q, k, v, angles, shape)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, angles: jax.Array | None, shape: Shape) -> tuple[jax.Array, tuple]:
    arrays = (_pairs(q), _pairs(k), v, *_turns(angles))
    out = (jax.ShapeDtypeStruct(q.shape, v.dtype), jax.ShapeDtypeStruct(q.shape[:2], jnp.float32))
    y, sums = _run(_forward_kernel, "attention", shape, 2, shape.query_tiles, arrays, out)
    y, sums = checkpoint_name(y, PRODUCT), checkpoint_name(sums, PRODUCT)
    return y, (q, k, v, angles, y, sums)


def _backward(shape: Shape, residuals: tuple, g: jax.Array) -> tuple[jax.Array | None, ...]:
    q, k, v, angles, y, sums = residuals
    means = jnp.sum(g.astype(jnp.float32) * y.astype(jnp.float32), -1)
    q, k = _pairs(q), _pairs(k)
    arrays = (q, k, v, g, sums, means, *_turns(angles))
    like_q, like_k, like_v = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v))
    (dq,) = _run(_query_gradient_kernel, "attention_query_gradient", shape, 3, shape.query_tiles, arrays, (like_q,))
    dk, dv = _run(_key_gradient_kernel, "attention_key_gradient", shape, 4, shape.key_tiles, arrays, (like_k, like_v))
    return dq.reshape(y.shape), dk.reshape(v.shape), dv, None


_attend.defvjp(_forward, _backward)


@partial(register, "pallas")
def pallas_attention(q: jax.Array, k: jax.Array, v: jax.Array, *, angles: jax.Array | None = None, causal: bool = False) -> jax.Array:
    """FlashAttention-2 in Pallas; the width of a head must be even."""
    shape = Shape(q.shape[-2], k.shape[-2], q.shape[-1], causal)
    y = _attend(*(x.reshape(-1, *x.shape[-2:]) for x in (q, k, v)), angles, shape)
    return y.reshape(q.shape)
