"""Encoded images as pixels, and back."""

from __future__ import annotations

import cv2
import numpy as np

from jaxface.data.headers import JPEG_START, Unreadable, header

LARGE = 30_000
"""Bytes below which reading a JPEG's size costs more than it can save."""
REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # a file that cannot be read is told once, by whoever asked for it


def decode(data: bytes, least: int = 0) -> np.ndarray:
    """Encoded bytes -> uint8 [H, W, 3] RGB, EXIF orientation applied. Raises Unreadable.

    Args:
      least: let a JPEG be decoded at a half, a quarter or an eighth of its size, as long as no side falls below so many pixels.
    """
    if not data:
        raise Unreadable("the file is empty")
    try:
        flags = REDUCED[_reduction(data, least)] if least and len(data) > LARGE else cv2.IMREAD_COLOR
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except (cv2.error, MemoryError) as error:
        raise Unreadable(f"cannot be decoded ({getattr(error, 'err', None) or error})") from None
    if image is None:
        raise Unreadable("cannot be decoded as an image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def _reduction(data: bytes, least: int) -> int:
    """By how much a JPEG may be shrunk while it is decoded."""
    found = header(data) if data.startswith(JPEG_START) else None
    return 1 if found is None else next((factor for factor in (8, 4, 2) if min(found.width, found.height) >= factor * least), 1)


def encode(image: np.ndarray) -> bytes:
    """uint8 [H, W, 3] RGB -> JPEG bytes of high quality."""
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
