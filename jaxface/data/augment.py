"""Random changes of training images, in the thesis's order (section 3.2.4) and with torchvision's meaning, in OpenCV on uint8.

Flip, color jitter, affine and resize in one warp, erasing. What is drawn at random (`Draw`) is apart from what is done with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in an image's grey."""
ERASED = 128
"""The pixel value that normalises to zero."""


@dataclass(frozen=True)
class Augment:
    """How strong the changes are; the defaults are the thesis's.

    Attributes:
      flip: probability of a horizontal flip.
      jitter: brightness, contrast and saturation change by a factor in 1 +- this.
      degrees: largest rotation to either side.
      translate: largest shift as a share of each side.
      scale: range of zoom.
      erase: probability of erasing a rectangle.
      erase_area: range of the rectangle's share of the image.
      erase_aspect: range of its height over width, drawn evenly in the logarithm.
    """

    flip: float = 0.5
    jitter: float = 0.2
    degrees: float = 10.0
    translate: float = 0.05
    scale: tuple[float, float] = (0.9, 1.1)
    erase: float = 0.5
    erase_area: tuple[float, float] = (0.02, 0.2)
    erase_aspect: tuple[float, float] = (0.3, 3.3)


@dataclass(frozen=True)
class Draw:
    """One image's random numbers.

    Attributes:
      flip: whether to mirror left and right.
      factors: of brightness, contrast, saturation.
      order: in which those three are applied.
      angle: degrees, counter-clockwise as torchvision counts.
      shift: x, y in shares of the sides.
      zoom: factor.
      hole: top, left, height, width of the erased rectangle in shares of the sides, or None.
    """

    flip: bool
    factors: tuple[float, float, float]
    order: tuple[int, ...]
    angle: float
    shift: tuple[float, float]
    zoom: float
    hole: tuple[float, float, float, float] | None


def draw(augment: Augment, rng: np.random.Generator) -> Draw:
    """Draws the numbers of one image."""
    j, t = augment.jitter, augment.translate
    return Draw(
        flip=bool(rng.random() < augment.flip),
        factors=tuple(rng.uniform(1 - j, 1 + j, 3)),
        order=tuple(rng.permutation(3)),
        angle=float(rng.uniform(-augment.degrees, augment.degrees)),
        shift=tuple(rng.uniform(-t, t, 2)),
        zoom=float(rng.uniform(*augment.scale)),
        hole=_draw_hole(augment, rng) if rng.random() < augment.erase else None,
    )


def _draw_hole(augment: Augment, rng: np.random.Generator) -> tuple[float, float, float, float] | None:
    for _ in range(10):  # as torchvision: ten tries for one that fits
        area = rng.uniform(*augment.erase_area)
        aspect = math.exp(rng.uniform(*np.log(augment.erase_aspect)))
        height, width = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if height < 1 and width < 1:
            return rng.uniform(0, 1 - height), rng.uniform(0, 1 - width), height, width
    return None


def apply(image: np.ndarray, numbers: Draw, size: int) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [size, size, 3], changed by the drawn numbers."""
    if max(image.shape[:2]) > 2 * size:  # a warp does not antialias: shrink first, and keep some pixels for it
        image = resize(image, 2 * size)
    if numbers.flip:
        image = image[:, ::-1]
    for index in numbers.order:
        image = JITTER[index](image, numbers.factors[index])
    image = affine(image, numbers.angle, numbers.shift, numbers.zoom, size)
    return image if numbers.hole is None else erase(image, numbers.hole)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """The image times a factor, clipped."""
    return cv2.convertScaleAbs(np.ascontiguousarray(image), alpha=factor)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """A blend with the image's mean grey."""
    image = np.ascontiguousarray(image)
    mean = float(np.dot(cv2.mean(image)[:3], GREY))
    return cv2.LUT(image, np.clip(np.arange(256) * factor + (1 - factor) * mean, 0, 255).astype(np.uint8))


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """A blend with the grey image; linear in the channels, so one matrix does it."""
    matrix = np.eye(3) * factor + (1 - factor) * np.tile(GREY, (3, 1))
    return cv2.transform(np.ascontiguousarray(image), matrix.astype(np.float32))


JITTER = (brightness, contrast, saturation)


def affine(image: np.ndarray, angle: float, shift: tuple[float, float], zoom: float, size: int) -> np.ndarray:
    """Rotation and zoom about the centre, then the shift, then the squash to [size, size, 3]: one bilinear warp, black outside."""
    height, width = image.shape[:2]
    a = math.radians(angle)
    turn = zoom * np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
    centre = np.array([width, height]) / 2
    # pixel centres lie at half numbers: p' = S (turn (p + 1/2 - centre) + centre + shift) - 1/2
    squash = np.array([size / width, size / height])
    moved = centre + np.array(shift) * (width, height) + turn @ (0.5 - centre)
    matrix = np.column_stack([squash[:, None] * turn, squash * moved - 0.5])
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


def erase(image: np.ndarray, hole: tuple[float, float, float, float]) -> np.ndarray:
    """Sets a rectangle to the value that normalises to zero."""
    size = np.array(image.shape[:2])
    top, left = np.round(np.array(hole[:2]) * size).astype(int)
    height, width = np.maximum(np.round(np.array(hole[2:]) * size).astype(int), 1)
    image[top : top + height, left : left + width] = ERASED
    return image


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Squashes to [size, size, 3]: area mean where it shrinks (PIL's bilinear filter antialiases too), bilinear where it grows."""
    if image.shape[:2] == (size, size):
        return image
    shrinks = min(image.shape[:2]) >= size
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
