"""Kinds of image files: how each is known by its first bytes, and decoded within bounds.

A further kind is one entry: `FORMATS.add("QOI", Format((".qoi",), lambda start: start.startswith(b"qoif"), decode_qoi))`.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from jaxface.data.headers import JPEG_SCAN, JPEG_START, PNG_START, Header, NoPhoto, TooLarge, Unreadable, header, png_chunks
from jaxface.registry import Registry


@dataclass(frozen=True)
class Bounds:
    """What decoding one file may take.

    Attributes:
      megabytes: of the file.
      megapixels: of the picture, as its header says and as it comes out.
      scans: of a progressive JPEG: each goes over all pixels, and a camera makes about ten.
      seconds: of a decoder that has no bounds of its own, or much to do; it works in a process that is killed after them.
      memory_mb: of that process.
      heavy: megapixels, as `work` counts them, from which a file is decoded in such a process: 150 are up to about four seconds, if each
        scan of a JPEG holds as much as it can.
      nice: how far that process steps back behind others, as Unix counts it.
      least: lets a JPEG be decoded at a half, a quarter or an eighth, as long as no side falls below so many pixels; 0 does not.
    """

    megabytes: float = 1000.0
    megapixels: float = 178.0
    scans: int = 100
    seconds: float = 20.0
    memory_mb: float = 4000.0
    heavy: float = 150.0
    nice: int = 0
    least: int = 0

    def check_size(self, width: int, height: int) -> None:
        """Raises TooLarge for more pixels than are allowed."""
        if width * height > 1e6 * self.megapixels:
            raise TooLarge(f"too large: {width} x {height} pixels, at most {self.megapixels:g} million")


class Decoded(NamedTuple):
    """A picture, uint8 [H, W, 3] RGB as people see it, and what its decoder complained of: '' for nothing."""

    pixels: np.ndarray
    damage: str = ""


Decode = Callable[[bytes, Bounds], Decoded]


@dataclass(frozen=True)
class Format:
    """One kind of files.

    Attributes:
      suffixes: of their names, by which folders are searched; what a file is, its first bytes say.
      matches: whether a file's first 64 bytes are of this kind.
      decode: the whole file within bounds. Raises Unreadable, or anything else that its library raises.
      apart: whether it is decoded in a process of its own, because its header does not bound what its decoder does.
    """

    suffixes: tuple[str, ...]
    matches: Callable[[bytes], bool]
    decode: Decode
    apart: bool = False


FORMATS: Registry[Format] = Registry("image format")


def format_of(data: bytes) -> Format:
    """The kind of a file. Raises NoPhoto for none of the known ones."""
    for kind in FORMATS.values():
        if kind.matches(data[:64]):
            return kind
    raise NoPhoto("cannot be decoded as an image")


def suffixes() -> tuple[str, ...]:
    """Of all known kinds."""
    return tuple(suffix for kind in FORMATS.values() for suffix in kind.suffixes)


def checked(data: bytes, bounds: Bounds) -> Header:
    """What a file says of its picture. Raises Unreadable for a picture that is too large, several in one file, or none."""
    found = header(data)
    if found is None:
        raise Unreadable("cannot be decoded as an image")
    bounds.check_size(found.width, found.height)
    if found.pictures > 1:
        raise Unreadable(f"{found.pictures} pictures in one file, not one")
    return found


SLOW = 4
"""How many times longer than a scan of a JPEG other decoders may take for a pixel."""


def work(data: bytes, found: Header, bounds: Bounds) -> float:
    """Megapixels that decoding a file goes over, each scan of a JPEG for itself. Raises Unreadable for more scans than are allowed."""
    scans = data.count(JPEG_SCAN) if data.startswith(JPEG_START) else SLOW
    if data.startswith(JPEG_START) and scans > bounds.scans:
        raise Unreadable(f"{scans:,} scans, at most {bounds.scans}")
    return scans * found.width * found.height / 1e6


def decode_jpeg(data: bytes, bounds: Bounds) -> Decoded:
    """libjpeg-turbo, which tells of damage where OpenCV and Pillow keep silent; four inks are OpenCV's to mix."""
    width, height, mode, turned, _ = checked(data, bounds)
    if mode not in ("RGB", "L"):
        return decode_opencv(data, bounds)
    factor = next((factor for factor in (8, 4, 2) if bounds.least and min(width, height) >= factor * bounds.least), 1)
    try:
        if factor > 1:
            small = simplejpeg.decode_jpeg(data, "RGB", min_width=-(-width // factor), min_height=-(-height // factor))
            return Decoded(turn(small, turned))
        return Decoded(turn(simplejpeg.decode_jpeg(data, "RGB"), turned))
    except ValueError as error:
        damage = str(error)
    try:
        return Decoded(turn(simplejpeg.decode_jpeg(data, "RGB", strict=False), turned), damage)
    except ValueError as error:
        raise Unreadable(f"cannot be decoded ({error})") from None


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: image[::-1].transpose(1, 0, 2),
    7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    8: lambda image: image.transpose(1, 0, 2)[::-1],
}
"""What makes a picture upright, by EXIF's orientation."""


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """A picture as people see it."""
    return np.ascontiguousarray(TURNS[orientation](image)) if orientation in TURNS else image


def decode_opencv(data: bytes, bounds: Bounds) -> Decoded:
    """OpenCV's decoder of the kind, which turns by EXIF and brings 16 bits down to 8."""
    checked(data, bounds)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise Unreadable("cannot be decoded as an image")
    return Decoded(cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image))


PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PNG_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")
"""The chunks that pixels come from: of faults in others libpng speaks on standard error, and nobody would know of which file."""
DEFLATE = 1032
"""Bytes that one byte of a deflated stream can become, at most."""


def decode_png(data: bytes, bounds: Bounds) -> Decoded:
    """OpenCV's decoder, for a file that can hold as many pixels as it says: allocating those that it cannot takes long."""
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    if width * height * depth * PNG_CHANNELS.get(colour, 1) > 8 * DEFLATE * len(data):
        raise Unreadable(f"the file is cut off: {len(data):,} bytes for {width} x {height} pixels")
    checked(data, bounds)
    needed = bytearray(PNG_START)
    for kind, start, end in png_chunks(data):
        if kind in PNG_NEEDED:
            if zlib.crc32(data[start - 4 : end]) != int.from_bytes(data[end : end + 4]):
                raise Unreadable(f"damaged: the checksum of {kind.decode()} is wrong")
            needed += data[start - 8 : end + 4]
    return decode_opencv(bytes(needed), bounds)


NETPBM = re.compile(rb"P[2356](?:\s+(?:#[^\n]*\n)*)\d+(?:\s+(?:#[^\n]*\n)*)\d+(?:\s+(?:#[^\n]*\n)*)(\d{1,5})\s")
"""The header of one with grey values or colours, and the value of white."""


def decode_netpbm(data: bytes, bounds: Bounds) -> Decoded:
    """OpenCV's decoder, whose values are as the file has them: white is whatever its header says."""
    found = NETPBM.match(data[:4096])
    white = int(found[1]) if found else 255
    if white in (255, 65535):
        return decode_opencv(data, bounds)
    checked(data, bounds)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if image is None or not 0 < white < 65535 or image.max() > white:
        raise Unreadable("cannot be decoded as an image")
    return Decoded(np.rint(image[..., ::-1] * (255 / white)).astype(np.uint8))


def decode_pillow(data: bytes, bounds: Bounds) -> Decoded:
    """Pillow's decoder of the kind, which turns also by the container's own word (AVIF's irot and imir)."""
    checked(data, bounds)
    with Image.open(io.BytesIO(data)) as image:
        return Decoded(np.asarray(ImageOps.exif_transpose(image).convert("RGB")))


def decode_heif(data: bytes, bounds: Bounds) -> Decoded:
    """libheif, of the extra `heif`; it turns by itself."""
    try:
        import pillow_heif
    except ImportError:
        raise Unreadable("a HEIC photo: pip install 'jaxface[heif]'") from None
    file = pillow_heif.open_heif(data, convert_hdr_to_8bit=True)
    bounds.check_size(*file.size)
    return Decoded(np.asarray(file.to_pillow().convert("RGB")))


def _brand(names: bytes) -> Callable[[bytes], bool]:
    """Files of ISO's base media format whose brands hold one of the names."""
    return lambda start: start[4:8] == b"ftyp" and re.search(names, start[8 : max(int.from_bytes(start[:4], "big"), 12)]) is not None


for name, kind in {
    "JPEG": Format((".jpg", ".jpeg", ".jfif", ".jpe"), lambda start: start.startswith(JPEG_START), decode_jpeg),
    "PNG": Format((".png",), lambda start: start.startswith(PNG_START), decode_png),
    "WebP": Format((".webp",), lambda start: start[:4] == b"RIFF" and start[8:12] == b"WEBP", decode_opencv),
    "BMP": Format((".bmp",), lambda start: start.startswith(b"BM"), decode_opencv),
    "netpbm": Format((".ppm", ".pgm", ".pbm"), lambda start: re.match(rb"P[1-6]\s", start) is not None, decode_netpbm, apart=True),
    "TIFF": Format((".tif", ".tiff"), lambda start: start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), decode_opencv, apart=True),
    "GIF": Format((".gif",), lambda start: start.startswith((b"GIF87a", b"GIF89a")), decode_opencv, apart=True),
    "JPEG 2000": Format(
        (".jp2", ".j2k", ".jpx"),
        lambda start: start.startswith((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")),
        decode_opencv,
        apart=True,
    ),
    "AVIF": Format((".avif",), _brand(rb"avi[fs]"), decode_pillow, apart=True),
    "HEIF": Format((".heic", ".heif", ".hif"), _brand(rb"hei[cxms]|hev[cxms]|mif1|msf1"), decode_heif, apart=True),
}.items():
    FORMATS.add(name, kind)
