"""Single changes of an image with torchvision's meaning, in OpenCV on uint8 [H, W, 3]; RandAugment (Cubuk et al. 2020) draws from them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from jaxface.registry import Registry

GREYS = np.tile((0.299, 0.587, 0.114), (3, 1))
"""The matrix that makes each channel the grey of red, green and blue."""
EYE, LEVELS = np.eye(3), np.arange(256)
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """The image times a factor, clipped."""
    return _blend(image, 0.0, factor)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """A blend with the image's mean grey."""
    return _blend(image, cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0], factor)


def _blend(image: np.ndarray, grey: float, factor: float) -> np.ndarray:
    """factor * image + (1 - factor) * grey, clipped and cut to whole numbers as torchvision does."""
    return cv2.LUT(image, np.clip(LEVELS * factor + (1 - factor) * grey, 0, 255).astype(np.uint8))


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """A blend with the grey image; linear in the channels, so one matrix does it."""
    return cv2.transform(image, (EYE * factor + (1 - factor) * GREYS).astype(np.float32))


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """A blend with the smoothed image; the outermost pixels stay."""
    smooth = image.copy()
    smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, SMOOTH)[1:-1, 1:-1]
    return cv2.addWeighted(image, factor, smooth, 1 - factor, 0)


def posterize(image: np.ndarray, bits: float) -> np.ndarray:
    """Keeps the highest bits of each level."""
    return image & np.uint8(256 - 2 ** (8 - int(bits)))


def solarize(image: np.ndarray, threshold: float) -> np.ndarray:
    """Inverts the levels from a threshold (0 to 1) up."""
    return cv2.LUT(image, np.where(threshold * 255 <= LEVELS, 255 - LEVELS, LEVELS).astype(np.uint8))


def autocontrast(image: np.ndarray, _: float = 0) -> np.ndarray:
    """Stretches each channel from its darkest to its brightest level over all."""
    low, high = image.min((0, 1)).astype(float), image.max((0, 1)).astype(float)
    scale = np.where(high > low, 255 / np.maximum(high - low, 1), 1)
    start = np.where(high > low, low, 0)
    return cv2.LUT(image, np.clip((LEVELS[:, None] - start) * scale, 0, 255).astype(np.uint8)[None])


def equalize(image: np.ndarray, _: float = 0) -> np.ndarray:
    """Spreads each channel's levels evenly over its pixels."""
    return cv2.LUT(image, np.stack([_equal_levels(image[..., channel]) for channel in range(3)], -1)[None])


def _equal_levels(channel: np.ndarray) -> np.ndarray:
    counts = np.bincount(channel.ravel(), minlength=256)
    step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
    if step == 0:
        return LEVELS.astype(np.uint8)
    before = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.clip((before + step // 2) // step, 0, 255).astype(np.uint8)


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Counter-clockwise about the centre."""
    height, width = image.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2 - 0.5, height / 2 - 0.5), degrees, 1)
    return cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_LINEAR)


def shear_x(image: np.ndarray, slope: float) -> np.ndarray:
    """Lower rows are shifted, in proportion to their distance from the upper edge."""
    return _move(image, ((1, -slope, -slope / 2), (0, 1, 0)))


def shear_y(image: np.ndarray, slope: float) -> np.ndarray:
    """Columns are shifted, in proportion to their distance from the left edge."""
    return _move(image, ((1, 0, 0), (-slope, 1, -slope / 2)))


def translate_x(image: np.ndarray, share: float) -> np.ndarray:
    """A shift by whole pixels; the value is a share of the width."""
    return _move(image, ((1, 0, int(share * image.shape[1])), (0, 1, 0)))


def translate_y(image: np.ndarray, share: float) -> np.ndarray:
    """A shift by whole pixels; the value is a share of the height."""
    return _move(image, ((1, 0, 0), (0, 1, int(share * image.shape[0]))))


def _move(image: np.ndarray, matrix: tuple[tuple[float, ...], ...]) -> np.ndarray:
    return cv2.warpAffine(image, np.array(matrix, float), image.shape[1::-1], flags=cv2.INTER_LINEAR)


class Operation(NamedTuple):
    """One of RandAugment's changes.

    Attributes:
      change: (uint8 [H, W, 3], value) -> uint8 [H, W, 3].
      weakest, strongest: the values at the ends of the scale of strength.
      signed: whether the value is negated half of the time.
      offset: added to the value at last.
    """

    change: Callable[[np.ndarray, float], np.ndarray]
    weakest: float = 0.0
    strongest: float = 0.0
    signed: bool = False
    offset: float = 0.0


OPERATIONS: Registry[Operation] = Registry(
    "augmentation operation",
    {
        "identity": Operation(lambda image, _: image),
        "shear_x": Operation(shear_x, 0, 0.3, signed=True),
        "shear_y": Operation(shear_y, 0, 0.3, signed=True),
        "translate_x": Operation(translate_x, 0, 150 / 331, signed=True),
        "translate_y": Operation(translate_y, 0, 150 / 331, signed=True),
        "rotate": Operation(rotate, 0, 30, signed=True),
        "brightness": Operation(brightness, 0, 0.9, signed=True, offset=1),
        "saturation": Operation(saturation, 0, 0.9, signed=True, offset=1),
        "contrast": Operation(contrast, 0, 0.9, signed=True, offset=1),
        "sharpness": Operation(sharpness, 0, 0.9, signed=True, offset=1),
        "posterize": Operation(posterize, 8, 4),
        "solarize": Operation(solarize, 1, 0),
        "autocontrast": Operation(autocontrast),
        "equalize": Operation(equalize),
    },
)
"""RandAugment's changes and their range, as in torchvision."""


def draw_operations(count: int, strength: float, rng: np.random.Generator) -> tuple[tuple[str, float], ...]:
    """`count` operations with their values, at a strength of 0 to 1."""
    drawn = []
    for name in rng.choice(list(OPERATIONS), count):
        operation = OPERATIONS[name]
        value = operation.weakest + strength * (operation.strongest - operation.weakest)
        if operation.signed and rng.random() < 0.5:
            value = -value
        drawn.append((str(name), math.floor(value + 0.5) if name == "posterize" else value + operation.offset))
    return tuple(drawn)
