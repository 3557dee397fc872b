"""Encoded images: what a file holds, and its pixels."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
from PIL import Image

from jaxface.errors import UserError

EXIF_ORIENTATION = 0x0112
JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"
PNG_START, PNG_LAST = b"\x89PNG\r\n\x1a\n", b"IEND"

LARGE = 30_000
"""Bytes below which reading a JPEG's size costs more than it can save."""
REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # a file that cannot be read is told once, by whoever asked for it


class Unreadable(UserError):
    """An image that cannot be used; the message says why."""


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
    with header(data) as image:
        if image is None or image.format != "JPEG":
            return 1
        return next((factor for factor in (8, 4, 2) if min(image.size) >= factor * least), 1)


def encode(image: np.ndarray) -> bytes:
    """uint8 [H, W, 3] RGB -> JPEG bytes of high quality."""
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def is_cut_off(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end: decoders fill the rest with grey, and say nothing."""
    if data.startswith(JPEG_START):  # an end marker before the last scan is the thumbnail's
        end = data.rfind(JPEG_END)
        return end < 0 or end < data.rfind(JPEG_SCAN)
    return data.startswith(PNG_START) and not _reaches_end(data)


def _reaches_end(png: bytes) -> bool:
    """Whether a PNG's chunks follow each other to its last: decoders believe a length that goes far beyond the file."""
    place = len(PNG_START)
    while place + 12 <= len(png):
        if png[place + 4 : place + 8] == PNG_LAST:
            return True
        place += 12 + int.from_bytes(png[place : place + 4], "big")
    return False


def is_plain(data: bytes) -> bool:
    """Whether a file is a JPEG or PNG whose pixels are stored as they are shown, so that every reader decodes it alike."""
    if not data.startswith((JPEG_START, PNG_START)):
        return False
    with header(data) as image:
        return image is not None and image.mode in ("RGB", "L") and image.getexif().get(EXIF_ORIENTATION, 1) == 1


@contextmanager
def header(data: bytes) -> Iterator[Image.Image | None]:
    """The opened, undecoded image, or None where Pillow does not know the format. Raises Unreadable for more than 178 million pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns at half of what it refuses
        try:
            image = Image.open(io.BytesIO(data))
        except Image.DecompressionBombError as error:
            raise Unreadable(f"too large: {str(error).partition(',')[0]}") from None
        except Exception:
            image = None
    try:
        yield image
    finally:
        if image is not None:
            image.close()
