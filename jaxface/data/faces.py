"""From an image file to a face crop."""

from __future__ import annotations

import cv2
import numpy as np

from jaxface.errors import UserError


class Unreadable(UserError):
    """An image that cannot be used; the message says why."""


def decode(data: bytes) -> np.ndarray:
    """Encoded bytes -> uint8 [H, W, 3] RGB, EXIF orientation applied. Raises Unreadable."""
    if not data:
        raise Unreadable("the file is empty")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise Unreadable(f"cannot be decoded ({error.err})") from None
    if image is None:
        raise Unreadable("cannot be decoded as an image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def encode(image: np.ndarray) -> bytes:
    """uint8 [H, W, 3] RGB -> JPEG bytes of high quality."""
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def crop(image: np.ndarray, box: tuple[float, float, float, float], margin: float) -> np.ndarray:
    """A square around the box, enlarged by `margin` of its longer side on each side, black where it leaves the image.

    Args:
      image: uint8 [H, W, 3].
      box: x0, y0, x1, y1 in pixels.
      margin: 0 for the box's own longer side.

    Raises Unreadable for a box without area or outside the image.
    """
    x0, y0, x1, y1 = box
    height, width = image.shape[:2]
    if not (x1 > x0 and y1 > y0) or x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        raise Unreadable(f"face box {x0:g},{y0:g},{x1:g},{y1:g} has no area inside the image of {width} x {height}")
    side = max(1, round(max(x1 - x0, y1 - y0) * (1 + 2 * margin)))
    left, top = round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2)
    square = np.zeros((side, side, 3), np.uint8)
    sx0, sy0, sx1, sy1 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    square[sy0 - top : sy1 - top, sx0 - left : sx1 - left] = image[sy0:sy1, sx0:sx1]
    return square


PLAIN = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
"""First bytes of the formats that every reader decodes alike."""


def face_bytes(data: bytes, box: tuple[float, float, float, float] | None, margin: float) -> bytes:
    """The encoded face: the file's own bytes where they are a plain JPEG or PNG of the face alone, else encoded again.

    Raises Unreadable.
    """
    if _is_truncated(data):
        raise Unreadable("the JPEG is cut off")
    image = decode(data)
    if box is None and data.startswith(PLAIN) and not _is_turned(data):
        return data
    return encode(image if box is None else crop(image, box, margin))


def _is_truncated(data: bytes) -> bool:
    """A JPEG without its end marker: decoders fill the rest with grey, and say nothing."""
    return data.startswith(PLAIN[0]) and b"\xff\xd9" not in data[-64:]


def _is_turned(data: bytes) -> bool:
    """Whether the pixels are stored in another orientation than they are shown in."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    stored = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return b"Exif" in data[:4096] and (stored.shape != shown.shape or not np.array_equal(stored, shown))
