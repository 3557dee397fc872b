"""Positions: rotary angles in two dimensions, and absolute positions resized to another grid."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def rope_angles(rows: int, columns: int, head_width: int, class_token: bool) -> np.ndarray:
    """Rotation angle of every channel pair at every token.

    The first half of a head's channel pairs turns with x, the second half with y, with frequencies 10000^(-2k / (head_width / 2)).
    Positions are the integers from 0, or from 1 where there is a class token, which itself does not turn. They are not rescaled
    at other image sizes (Perception Encoder, section 2.1).

    Returns:
      [N, head_width / 2] float32, radians, N = rows * columns + class_token.
    """
    axis = head_width // 2
    frequencies = 1.0 / (10_000.0 ** (np.arange(0, axis, 2, dtype=np.float32) / np.float32(axis)))
    start = 1 if class_token else 0
    y, x = np.meshgrid(np.arange(rows) + start, np.arange(columns) + start, indexing="ij")
    positions = np.stack([x.ravel(), y.ravel()], -1).astype(np.float32)  # [N, 2]
    angles = (positions[:, :, None] * frequencies).reshape(rows * columns, axis)
    if class_token:
        angles = np.concatenate([np.zeros((1, axis), np.float32), angles])
    return angles.astype(np.float32)


def resize_positions(positions: jax.Array, rows: int, columns: int, class_token: bool) -> jax.Array:
    """Absolute positions [N, D] of a square grid, at another grid: bilinear, without antialiasing, in float32; the class position stays."""
    first = int(class_token)
    grid = round((positions.shape[0] - first) ** 0.5)
    if (rows, columns) == (grid, grid):
        return positions
    width = positions.shape[1]
    patches = positions[first:].reshape(grid, grid, width).astype(jnp.float32)
    patches = jax.image.resize(patches, (rows, columns, width), "bilinear", antialias=False)
    return jnp.concatenate([positions[:first], patches.reshape(-1, width).astype(positions.dtype)])
