"""Pictures of what an encoder attends to, and of what its patches have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from jaxface.models.config import EncoderConfig
from jaxface.plots import new_figure, styled


def on_grid(values: np.ndarray, config: EncoderConfig, height: int, width: int) -> np.ndarray:
    """Values of tokens [B, N, ...] as those of patches [B, rows, columns, ...], without the class token and registers."""
    rows, columns = height // config.patch, width // config.patch
    return np.asarray(values)[:, config.prefix :].reshape(len(values), rows, columns, *values.shape[2:])


def main_directions(features: np.ndarray, count: int = 3, like: np.ndarray | None = None) -> np.ndarray:
    """Features [B, rows, columns, D] along the directions in which they differ most, each between 0 and 1: [B, rows, columns, count].

    Args:
      like: features whose directions and range are taken in place of their own.
    """
    flat, base = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (features, features if like is None else like))
    directions = np.linalg.svd(base - base.mean(0), full_matrices=False)[2][:count].T
    flat, base = ((x - base.mean(0)) @ directions for x in (flat, base))
    low, high = np.percentile(base, (2, 98), axis=0)
    return np.clip((flat - low) / np.maximum(high - low, 1e-12), 0, 1).reshape(*features.shape[:-1], count)


def over(photo: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A photo [H, W, 3] with a map [rows, columns] over it, the largest value brightest: uint8 [H, W, 3]."""
    wide = cv2.resize(heat.astype(np.float32), photo.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    wide = np.clip((wide - wide.min()) / max(float(wide.max() - wide.min()), 1e-12), 0, 1)
    colours = mpl.colormaps["inferno"](wide)[..., :3] * 255
    return (0.45 * photo + 0.55 * colours).astype(np.uint8)


@styled
def draw_grid(columns: Mapping[str, Sequence[np.ndarray]]) -> Figure:
    """A column of pictures below each heading, as many rows as the shortest has."""
    rows = min(map(len, columns.values()))
    figure, axes = new_figure(1.55 * len(columns), 1.6 * rows + 0.4, nrows=rows, ncols=len(columns), squeeze=False)
    for axis, (title, pictures) in zip(axes.T, columns.items(), strict=True):
        axis[0].set_title(title.replace(": ", "\n"), fontsize=8)
        for cell, picture in zip(axis, pictures, strict=False):
            cell.imshow(picture, interpolation="nearest")
            cell.axis("off")
    return figure


def maps_columns(
    photos: np.ndarray, maps: Mapping[str, np.ndarray], config: EncoderConfig, like: np.ndarray | None = None
) -> dict[str, list[np.ndarray]]:
    """The pictures of photos uint8 [B, H, W, 3] by heading: the pool's probe, the last block's class token, and the patches' features.

    Args:
      maps: any of `pool` [B, H, N], `block` [B, H, N, N] and `tokens` [B, N, D].
      like: tokens [B, N, D] whose main directions are shown in place of their own.
    """
    size, columns = photos.shape[1:3], {}
    if "pool" in maps:
        columns["the pool's probe"] = list(map(over, photos, on_grid(maps["pool"].mean(1), config, *size)))
    if "block" in maps:
        rows = maps["block"].mean(1)
        name, row = ("class token", rows[:, 0]) if config.class_token else ("mean of all", rows.mean(1))
        columns[f"last block, {name}"] = list(map(over, photos, on_grid(row, config, *size)))
    if "tokens" in maps:
        base = None if like is None else on_grid(like, config, *size)
        columns["patch features"] = list(main_directions(on_grid(maps["tokens"], config, *size), like=base))
    return columns
