"""Rotary positions in two dimensions: by which angle each channel pair of a head turns at each token."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxface.registry import Registry

if TYPE_CHECKING:
    from jax.typing import DTypeLike


class Rope(NamedTuple):
    """A kind of rotary positions.

    Attributes:
      angles: (rows, columns, head_width, class_token) -> [rows * columns, head_width / 2] radians, of the patches' channel pairs.
      halves: whether channel k pairs with channel k + head_width / 2, or 2 k with 2 k + 1.
    """

    angles: Callable[[int, int, int, bool], np.ndarray]
    halves: bool = False


def axial_angles(rows: int, columns: int, head_width: int, class_token: bool) -> np.ndarray:
    """The first half of a head's channel pairs turns with x, the second half with y, with frequencies 10000^(-2k / (head_width / 2)).

    Positions are the integers from 0, or from 1 where there is a class token. They are not rescaled at other image sizes (Perception
    Encoder, section 2.1).
    """
    axis = head_width // 2
    frequencies = 1.0 / (10_000.0 ** (np.arange(0, axis, 2, dtype=np.float32) / np.float32(axis)))
    start = 1 if class_token else 0
    y, x = np.meshgrid(np.arange(rows) + start, np.arange(columns) + start, indexing="ij")
    positions = np.stack([x.ravel(), y.ravel()], -1).astype(np.float64)  # [N, 2]; the product is exact, and rounded once
    return (positions[:, :, None] * frequencies).reshape(rows * columns, axis)


def unit_angles(rows: int, columns: int, head_width: int, class_token: bool) -> np.ndarray:
    """The first half of the pairs turns with y, the second with x, by 2 pi times the position over the periods 100^(2k / (head_width / 2)).

    Positions are the patches' centres, -1 at one edge of the image and 1 at the other, at any size (DINOv3, section 3.2).
    """
    axis = head_width // 2
    periods = np.float32(100.0) ** (2 * np.arange(axis // 2, dtype=np.float32) / np.float32(axis))
    places = (2 * (np.arange(0.5, n, dtype=np.float32) / np.float32(n)) - 1 for n in (rows, columns))
    y, x = np.meshgrid(*places, indexing="ij")
    positions = np.stack([y.ravel(), x.ravel()], -1)
    return (np.float32(2 * np.pi) * positions[:, :, None] / periods).reshape(rows * columns, axis)


ROPES: Registry[Rope] = Registry(
    "rotary positions", {"axial": Rope(axial_angles), "unit": Rope(unit_angles, halves=True)}, others="or none"
)


def rope_angles(
    kind: str, rows: int, columns: int, head_width: int, class_token: bool, registers: int = 0, dtype: DTypeLike = np.float32
) -> np.ndarray | None:
    """Angles [N, head_width / 2] of all tokens: those before the patches do not turn. None for the kind "none".

    N = class_token + registers + rows * columns.
    """
    if kind == "none":
        return None
    angles = ROPES[kind].angles(rows, columns, head_width, class_token)
    return np.concatenate([np.zeros((class_token + registers, head_width // 2)), angles]).astype(dtype)
