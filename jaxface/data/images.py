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
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # a file that cannot be read is told once, by whoever asked for it


class Unreadable(UserError):
    """An image that cannot be used; the message says why."""


def decode(data: bytes) -> np.ndarray:
    """Encoded bytes -> uint8 [H, W, 3] RGB, EXIF orientation applied. Raises Unreadable."""
    if not data:
        raise Unreadable("the file is empty")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except (cv2.error, MemoryError) as error:
        raise Unreadable(f"cannot be decoded ({getattr(error, 'err', None) or error})") from None
    if image is None:
        raise Unreadable("cannot be decoded as an image")
    return image


def decode_photo(data: bytes) -> np.ndarray:
    """As `decode`, for a file of unknown origin: whole, still, and of a size that memory can hold. Raises Unreadable."""
    check(data)
    return decode(data)


def encode(image: np.ndarray) -> bytes:
    """uint8 [H, W, 3] RGB -> JPEG bytes of high quality."""
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def check(data: bytes) -> None:
    """Looks at a file's first and last bytes, not at its pixels. Raises Unreadable if it is cut off, animated, or too large."""
    if not data:
        raise Unreadable("the file is empty")
    if is_cut_off(data):
        raise Unreadable("the file is cut off")
    with header(data) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # a phone's JPEG with a second view behind it
            raise Unreadable(f"{frames} pictures in one file, not one")


def is_cut_off(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end: decoders fill the rest with grey, and say nothing."""
    if data.startswith(JPEG_START):  # an end marker before the last scan is the thumbnail's
        return data.rfind(JPEG_END) < data.rfind(JPEG_SCAN)
    return data.startswith(PNG_START) and PNG_END not in data


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
