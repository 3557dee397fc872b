"""A photo of unknown origin as pixels: whatever is wrong with the file is one line, and none takes longer or more than its bounds."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from jaxface.data.apart import decode_apart
from jaxface.data.formats import Bounds, Decoded, checked, format_of, work
from jaxface.data.headers import JPEG_START, NoPhoto, TooLarge, Unreadable, is_cut_off

BOUNDS = Bounds()


class Plan(NamedTuple):
    """How a file is decoded.

    Attributes:
      apart: in a process of its own: its decoder has no bounds, or much to do.
      work: in megapixels, see `jaxface.data.formats.work`; 0 where the header's word counts for nothing.
    """

    apart: bool
    work: float


def plan(data: bytes, bounds: Bounds = BOUNDS) -> Plan:
    """Looks at a file before it is decoded, which takes milliseconds whatever it is.

    Raises Unreadable for what is no whole, still picture within the bounds, as far as that can be seen.
    """
    if not data:
        raise NoPhoto("the file is empty")
    if len(data) > 1e6 * bounds.megabytes:
        raise TooLarge(f"too large: {len(data) / 1e6:,.0f} MB, at most {bounds.megabytes:g}")
    kind = format_of(data)
    if is_cut_off(data):
        raise Unreadable("the file is cut off")
    if kind.apart:
        return Plan(True, 0.0)
    found = checked(data, bounds)
    amount = work(data, found, bounds)
    inks = data.startswith(JPEG_START) and found.mode not in ("RGB", "L")  # OpenCV mixes them, and tells of damage on standard error
    return Plan(inks or amount > bounds.heavy, amount)


def decode_photo(data: bytes, bounds: Bounds = BOUNDS, planned: Plan | None = None) -> Decoded:
    """A file's picture, uint8 [H, W, 3] RGB as people see it, and what its decoder complained of.

    Args:
      planned: the file's `plan`, where that has been made.

    Raises Unreadable for what is no whole, still picture within the bounds.
    """
    planned = planned or plan(data, bounds)
    return decode_apart(data, replace(bounds, least=0)) if planned.apart else decode_here(data, bounds)


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
    return decode_photo(read_file(path, bounds), bounds)


def read_file(path: Path, bounds: Bounds = BOUNDS) -> bytes:
    """A photo's bytes. Raises Unreadable, without the path, for what cannot be read, is no file or too large."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise Unreadable("no file but a folder, a pipe or a device")
        if found.st_size > 1e6 * bounds.megabytes:
            raise TooLarge(f"too large: {found.st_size / 1e6:,.0f} MB, at most {bounds.megabytes:g}")
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from None
    except ValueError as error:  # a name that no file can have
        raise Unreadable(str(error)) from None
