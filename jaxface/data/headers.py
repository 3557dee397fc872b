"""What an image file says of itself, read without decoding anything.

JPEG and PNG are read here, in a few microseconds, however many segments a hostile file has; other kinds are Pillow's to open.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from typing import Literal, NamedTuple

from PIL import Image

from jaxface.errors import UserError

JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"
PNG_START, PNG_LAST, PNG_PIXELS = b"\x89PNG\r\n\x1a\n", b"IEND", b"IDAT"
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""JPEG's markers that say how large a picture is."""
ALONE = {0x00, 0x01, *range(0xD0, 0xD9), 0xFF}
"""JPEG's markers without a length behind them."""
EXIF, ORIENTATION = b"Exif\0\0", 0x0112
PARTS = 1000
"""Segments or chunks that may stand before a picture; a camera writes at most a few dozen."""


class Unreadable(UserError):
    """An image that cannot be used; the message says why."""


class NoPhoto(Unreadable):
    """A file of no known kind of images."""


class TooLarge(Unreadable):
    """A picture of more pixels, or a file of more bytes, than are allowed."""


class Header(NamedTuple):
    """A picture before it is decoded.

    Attributes:
      width: in pixels as they are stored; so is `height`.
      mode: of its pixels as Pillow names it: RGB, L, CMYK, P...
      orientation: by EXIF, 1 for upright.
      pictures: how many the file holds.
    """

    width: int
    height: int
    mode: str
    orientation: int = 1
    pictures: int = 1

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height as people see it."""
        return (self.height, self.width) if self.orientation > 4 else (self.width, self.height)


def header(data: bytes) -> Header | None:
    """None where nothing can be told. Raises Unreadable for more parts than a picture has."""
    if data.startswith(JPEG_START):
        return _jpeg(data)
    return _png(data) if data.startswith(PNG_START) else _opened(data)


def _jpeg(data: bytes) -> Header | None:
    place, orientation = 2, 1
    for _ in range(PARTS):
        place = data.find(b"\xff", place)
        if place < 0 or place + 10 > len(data):
            return None
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4])
        if marker in FRAMES:
            height, width, channels = (
                int.from_bytes(data[place + 5 : place + 7]),
                int.from_bytes(data[place + 7 : place + 9]),
                data[place + 9],
            )
            return Header(width, height, {1: "L", 3: "RGB", 4: "CMYK"}.get(channels, ""), orientation)
        if marker in JPEG_SCAN[1:] + JPEG_END[1:]:
            return None
        if marker == 0xE1 and data.startswith(EXIF, place + 4) and orientation == 1:
            orientation = exif_orientation(data[place + 10 : place + 2 + length])
        place += 1 if marker in ALONE else 2 + length
    raise Unreadable(f"more than {PARTS:,} segments before the picture")


PNG_MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}


def _png(data: bytes) -> Header | None:
    if len(data) < 33:
        return None
    width, height, depth, colour = int.from_bytes(data[16:20]), int.from_bytes(data[20:24]), data[24], data[25]
    mode = PNG_MODES.get(colour, "") if colour or depth == 8 else f"I;{depth}"
    orientation, pictures = 1, 1
    for kind, start, end in png_chunks(data):
        if kind == PNG_PIXELS:
            break
        if kind == b"eXIf":
            orientation = exif_orientation(data[start:end])
        if kind == b"acTL":  # of an animated one
            pictures = int.from_bytes(data[start : start + 4])
    return Header(width, height, mode, orientation, pictures)


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the content of every chunk that is there whole.

    Raises Unreadable for chunks so many and small that no program writes them.
    """
    place, most = len(PNG_START), PARTS + len(data) // 1000
    for _ in range(most):
        end = place + 12 + int.from_bytes(data[place : place + 4])
        if place + 12 > len(data) or end > len(data):
            return
        yield data[place + 4 : place + 8], place + 8, end - 4
        place = end
    raise Unreadable(f"more than {most:,} chunks in {len(data):,} bytes")


def exif_orientation(exif: bytes) -> int:
    """The orientation, 1 to 8, that EXIF data (a TIFF directory) say; 1 for none."""
    orders: dict[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}
    order = orders.get(exif[:4])
    if order is None:
        return 1
    start = int.from_bytes(exif[4:8], order)
    for place in range(start + 2, start + 2 + 12 * int.from_bytes(exif[start : start + 2], order), 12):
        entry = exif[place : place + 12]
        if int.from_bytes(entry[:2], order) == ORIENTATION:
            value = int.from_bytes(entry[8:12] if entry[2:4] in (b"\4\0", b"\0\4") else entry[8:10], order)
            return value if value in range(1, 9) else 1
    return 1


def _opened(data: bytes) -> Header | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns at half of what it refuses
        try:
            with Image.open(io.BytesIO(data)) as image:
                try:
                    pictures = getattr(image, "n_frames", 1) if getattr(image, "is_animated", False) else 1
                except Exception:  # whatever it comes upon: then the decoder says what there is
                    pictures = 1
                return Header(*image.size, image.mode, pictures=pictures)
        except Image.DecompressionBombError as error:
            raise TooLarge(f"too large: {str(error).partition(',')[0]}") from None
        except Exception:
            return None


def is_plain(data: bytes) -> bool:
    """Whether a file is a JPEG or PNG whose pixels are stored as they are shown, so that every reader decodes it alike."""
    found = header(data) if data.startswith((JPEG_START, PNG_START)) else None
    return found is not None and found.mode in ("RGB", "L") and found.orientation == 1


def is_cut_off(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end: decoders fill the rest with grey, and say nothing, or believe a length far beyond the file."""
    if data.startswith(JPEG_START):  # an end marker before the last scan is the thumbnail's
        end = data.rfind(JPEG_END)
        return end < 0 or end < data.rfind(JPEG_SCAN)
    return data.startswith(PNG_START) and not any(kind == PNG_LAST for kind, *_ in png_chunks(data))
