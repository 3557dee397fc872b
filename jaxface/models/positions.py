"""Absolute positions, learned for a square grid, at another grid."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jaxface.registry import Registry

Resize = Callable[[jax.Array, tuple[int, ...]], jax.Array]
"""An image [rows, columns, D] at another size."""

RESIZE: Registry[Resize] = Registry(
    "way to resize positions",
    {
        "bilinear": partial(jax.image.resize, method="bilinear", antialias=False),
        "bicubic": partial(jax.image.resize, method="bicubic", antialias=True),
    },
)
"""Meta's, of the Perception Encoder; and timm's, of all other families."""


def resize_positions(positions: jax.Array, rows: int, columns: int, first: int, kind: str = "bilinear") -> jax.Array:
    """Absolute positions [first + N, D] at another grid, in float32; the `first` ones, of tokens before the patches, stay."""
    grid = round((positions.shape[0] - first) ** 0.5)
    if (rows, columns) == (grid, grid):
        return positions
    width = positions.shape[1]
    patches = positions[first:].reshape(grid, grid, width).astype(jnp.float32)
    patches = RESIZE[kind](patches, (rows, columns, width))
    return jnp.concatenate([positions[:first], patches.reshape(-1, width).astype(positions.dtype)])
