"""How a picture comes to an encoder's square: by which filter it is resampled, and what becomes of one that is not square.

Faces are cut out as squares, and the few that are not are squashed, so that no part of a face is lost: there the filter alone differs.
Whole photos come as the originals take them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from jaxface.registry import Registry


class Framing(NamedTuple):
    """How a family of encoders takes pictures.

    Attributes:
      words: what the filter is, for those who compute a model elsewhere.
      resample: (uint8 [H, W, 3], (width, height), out or None) -> uint8 [height, width, 3], without aliasing where it shrinks.
      pillow: the same filter of Pillow, for changes in torchvision's own way (`Augment.exact`).
      warp: OpenCV's flag of it, for warps.
      middle: whether the middle of a whole photo is taken, its shorter side at the encoder's size; else it is squashed.
    """

    words: str
    resample: Callable[[np.ndarray, tuple[int, int], np.ndarray | None], np.ndarray]
    pillow: Image.Resampling
    warp: int
    middle: bool = False


def _by_area(image: np.ndarray, size: tuple[int, int], out: np.ndarray | None) -> np.ndarray:
    """Area mean where it shrinks (Pillow's bilinear filter antialiases too), bilinear where it grows."""
    shrinks = min(image.shape[:2]) >= max(size)
    return cv2.resize(image, size, dst=out, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _bicubic(image: np.ndarray, size: tuple[int, int], out: np.ndarray | None) -> np.ndarray:
    """Pillow's, byte for byte what torchvision, timm, open_clip and transformers make of a Pillow image."""
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    if out is None:
        return resized.copy()  # what Pillow lends cannot be written to
    out[:] = resized
    return out


_BICUBIC = Framing("Pillow: BICUBIC", _bicubic, Image.Resampling.BICUBIC, cv2.INTER_CUBIC)
PLAIN = "bilinear-squash"
"""The Perception Encoder's."""
FRAMINGS: Registry[Framing] = Registry(
    "framing",
    {
        PLAIN: Framing("OpenCV: INTER_AREA where it shrinks, else INTER_LINEAR", _by_area, Image.Resampling.BILINEAR, cv2.INTER_LINEAR),
        "bicubic-squash": _BICUBIC,
        "bicubic-middle": _BICUBIC._replace(middle=True),
    },
)


def noted(framing: str) -> dict[str, str]:
    """What files say of a framing: nothing of the usual one, which files of earlier versions do not name."""
    return {} if framing == PLAIN else {"framing": framing}


def resize(image: np.ndarray, size: int, out: np.ndarray | None = None, framing: str = PLAIN) -> np.ndarray:
    """A face, uint8 [H, W, 3], as an encoder of that framing sees it: squashed to [size, size, 3], written into `out` where given."""
    return FRAMINGS[framing].resample(image, (size, size), out)


def frame(photo: np.ndarray, size: int, framing: str = PLAIN) -> np.ndarray:
    """A whole photo, uint8 [H, W, 3], as [size, size, 3]: its middle or all of it squashed, as the framing has it."""
    how, (height, width) = FRAMINGS[framing], photo.shape[:2]
    if not how.middle or height == width:
        return resize(photo, size, framing=framing)
    short = min(height, width)
    wide, high = size * width // short, size * height // short
    left, top = round((wide - size) / 2), round((high - size) / 2)  # as torchvision's resize and centre crop
    return np.ascontiguousarray(how.resample(photo, (wide, high), None)[top : top + size, left : left + size])
