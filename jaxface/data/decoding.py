"""A photo of unknown origin as pixels: whatever is wrong with the file is one line, and none takes longer or more than its bounds."""

from __future__ import annotations

import stat
from pathlib import Path

from jaxface.data.apart import decode_apart
from jaxface.data.formats import Bounds, Decoded, format_of, work
from jaxface.data.images import Unreadable, is_cut_off

BOUNDS = Bounds()
HEAVY = 150.0
"""Megapixels, as `work` counts them, from which a file is decoded apart: up to about four seconds, if each scan holds as much as it can."""


def decode_photo(data: bytes, bounds: Bounds = BOUNDS) -> Decoded:
    """A file's picture, uint8 [H, W, 3] RGB as people see it, and what its decoder complained of.

    Raises Unreadable for what is no whole, still picture within the bounds.
    """
    if not data:
        raise Unreadable("the file is empty")
    if len(data) > 1e6 * bounds.megabytes:
        raise Unreadable(f"too large: {len(data) / 1e6:,.0f} MB, at most {bounds.megabytes:g}")
    if is_cut_off(data):
        raise Unreadable("the file is cut off")
    if goes_apart(data, bounds):
        return decode_apart(data, bounds)
    return decode_here(data, bounds)


def goes_apart(data: bytes, bounds: Bounds = BOUNDS) -> bool:
    """Whether a file is decoded in a process of its own: its decoder has no bounds, or much to do. False for what is no photo."""
    try:
        return format_of(data).apart or work(data, bounds) > HEAVY
    except Unreadable:
        return False


def decode_here(data: bytes, bounds: Bounds) -> Decoded:
    """The same in this process, whatever it takes. Raises Unreadable, whatever the decoder raises."""
    try:
        decoded = format_of(data).decode(data, bounds)
    except Unreadable:
        raise
    except MemoryError:
        raise Unreadable("does not fit into memory") from None
    except Exception as error:
        raise Unreadable(f"cannot be decoded ({' '.join(str(error).split()) or type(error).__name__})") from None
    bounds.check_size(*decoded.pixels.shape[1::-1])
    return decoded


def read_photo(path: Path, bounds: Bounds = BOUNDS) -> Decoded:
    """As `decode_photo`, from a file. Raises Unreadable, without the path, also for what cannot be read, or is no file."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise Unreadable("no file but a folder, a pipe or a device")
        if found.st_size > 1e6 * bounds.megabytes:
            raise Unreadable(f"too large: {found.st_size / 1e6:,.0f} MB, at most {bounds.megabytes:g}")
        data = path.read_bytes()
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from None
    except ValueError as error:  # a name that no file can have
        raise Unreadable(str(error)) from None
    return decode_photo(data, bounds)
