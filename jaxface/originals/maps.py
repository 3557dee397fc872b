"""Attention maps and patch features of a vision tower and of its original."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.models.encoder import Encoder
from jaxface.originals.certificate import Pair
from jaxface.originals.hooks import in_place_of
from jaxface.originals.reference import Original
from jaxface.originals.values import Values

POOL = "pool.map"
"""The attention pool's map [B, H, 1, N] among the maps; those of blocks are `blocks.I.attn.map` [B, H, N, N]."""


def our_maps(encoder: Encoder, images: np.ndarray) -> Values:
    """The maps of every block and of the pool, and the tokens."""

    @jax.jit
    def run(encoder: Encoder, images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        tokens = encoder.tokens(images)
        return encoder.attention_maps(images), tokens, None if encoder.pool is None else encoder.pool.weights(tokens)[..., None, :]

    with jax.default_matmul_precision("highest"):
        blocks, tokens, pool = run(encoder, jnp.asarray(images))
    found = {f"blocks.{i}.attn.map": np.asarray(x) for i, x in enumerate(blocks)} | {"tokens": np.asarray(tokens)}
    return found if pool is None else found | {POOL: np.asarray(pool)}


def original_maps(original: Original, images: np.ndarray, precision: str) -> Values:
    """The same of the original, from the queries and keys that it gives to torch's attention."""
    import torch

    for module in original.modules:
        module.to(getattr(torch, precision))
    there = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(getattr(torch, precision))
    with torch.inference_mode(), _attending() as maps:
        original.vision(there)
        count = len(maps)
        tokens = original.tokens(there)
    depth = len(original.blocks)
    names = [*(f"blocks.{i}.attn.map" for i in range(depth)), POOL]
    return dict(zip(names, maps[:count], strict=False)) | {"tokens": (tokens if tokens.dtype == torch.float64 else tokens.float()).numpy()}


@contextmanager
def _attending() -> Iterator[list[np.ndarray]]:
    """The weights of every attention that torch computes while the context lasts, in its order."""
    import torch

    attend, maps = torch.nn.functional.scaled_dot_product_attention, []

    def watched(q: Any, k: Any, v: Any, *args: Any, scale: float | None = None, **options: Any) -> Any:
        weights = torch.softmax((q @ k.transpose(-2, -1)) * (q.shape[-1] ** -0.5 if scale is None else scale), -1)
        maps.append((weights if weights.dtype == torch.float64 else weights.float()).numpy())
        return attend(q, k, v, *args, scale=scale, **options)

    with in_place_of("scaled_dot_product_attention", watched):
        yield maps


def maps_pair(encoder: Encoder, original: Original, images: np.ndarray) -> Pair:
    """The pair whose values are the maps."""
    images = images.astype(np.float32)

    def alone(values: Values) -> Values:
        return {name: value for name, value in values.items() if name.endswith(".map")}

    def theirs(precision: str) -> Values:
        return alone(original_maps(original, images, precision))

    return Pair(lambda: alone(our_maps(encoder, images)), theirs, {}, lambda: ({}, {}), lambda found, tensors: {}, dict)


def worst_first(ours: Values, theirs: Values) -> list[int]:
    """The images' numbers, those first whose maps are furthest apart."""
    names = [name for name in ours if name.endswith(".map") and name in theirs]
    apart = [np.abs(ours[name] - theirs[name]).reshape(len(ours[name]), -1).max(1) for name in names]
    return [int(row) for row in np.argsort(-np.max(apart, 0), kind="stable")]
