"""Files that are whole or not there: written aside, then renamed."""

from __future__ import annotations

import fcntl
import json
import math
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxface.bounded import parse_json, read_small
from jaxface.errors import UserError, os_line

SHORT = 60
"""Characters of a file's name that its temporary name keeps: a name has at most 255 bytes."""

DIGESTS = "digests.json"
"""Beside files: the SHA-256 of each, see `jaxface.digests`."""


def forget_digest(path: Path) -> None:
    """Takes a file that is about to be another one out of its folder's digests: a kill between leaves nothing that looks damaged."""
    listed = path.with_name(DIGESTS)
    if path.name == DIGESTS or not listed.is_file():
        return
    try:
        known = read_object(listed)
    except UserError:  # who reads it will say so
        return
    if isinstance(known.get("sha256"), dict) and known["sha256"].pop(path.name, None) is not None:
        write_json(listed, known)


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, whose folder is made, that becomes it at the end, or vanishes on an error.

    Raises UserError if it cannot be written.
    """
    temporary = path.with_name(f".{path.name[:SHORT]}.{os.getpid()}-{threading.get_ident() % 10_000}.partial")
    try:
        with written(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            forget_digest(path)
            temporary.replace(path)
    finally:
        with suppress(OSError):  # what was wrong has been said
            temporary.unlink(missing_ok=True)


def held(path: Path, busy: str, flags: int = os.O_RDONLY) -> int:
    """Opens a file or folder that no other process may hold until it is closed.

    Args:
      flags: as `os.open` takes them.

    Raises UserError, `busy`, where another process holds it.
    """
    while True:
        handle = os.open(path, flags, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise UserError(busy) from None
        except OSError:  # some network file systems have no locks
            pass
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)  # who held it has taken it away


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps other commands out of a folder, which is made, and clears away what a killed one left half written in it and just below.

    Raises UserError if another command writes there.
    """
    handle, made = None, not folder.exists()
    while handle is None:
        with written(folder), suppress(FileNotFoundError):  # taken away as soon as it was made
            folder.mkdir(parents=True, exist_ok=True)
            handle = held(folder, f"{folder}: another command is writing there: wait for it, or choose another folder")
    try:
        for left in (*folder.glob(".*.partial"), *folder.glob("*/.*.partial")):
            left.unlink(missing_ok=True) if left.is_file() else None
        yield
    except BaseException:
        with suppress(OSError):
            folder.rmdir() if made else None  # where nothing was written
        raise
    finally:
        os.close(handle)


@contextmanager
def written(path: Path, done: str = "written") -> Iterator[None]:
    """Makes one line of whatever the system refuses while a file is `done` something with. Raises UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(os_line(error, path, done)) from None


read = partial(written, done="read")
"""The same while a file is read."""


def read_object(path: Path, advice: str = "", limit: int = 1 << 30) -> dict[str, Any]:
    """The JSON object that a file holds. Raises UserError, which ends with `advice`, for what cannot be read or is something else.

    Args:
      limit: bytes that it may have.
    """
    try:
        value = parse_json(read_small(path, limit))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}{advice}") from None
    except ValueError as error:
        raise UserError(f"{path}: no JSON: {error}{advice}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, expected a JSON object{advice}")
    return value


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON as all its readers know it: null for numbers that are none."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(finite(value), indent=indent, allow_nan=False)


def finite(value: Any) -> Any:
    """A value for JSON, which knows no NaN: None in its place."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def require_suffix(path: Path, *suffixes: str) -> None:
    """Raises UserError for a file to write whose name says another kind: it may well be one that is needed. No suffix says nothing."""
    if path.suffix.lower() not in ("", *suffixes):
        raise UserError(f"{path}: expected a name that ends in {' or '.join(suffixes)}")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON that people can read."""
    with aside(path) as temporary:
        temporary.write_text(to_json(value, indent=2) + "\n")


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file that is on the disk when its name is: the same bytes for the same content.

    Raises UserError if it cannot be written.
    """
    from safetensors.numpy import save

    content = memoryview(save({name: np.asarray(array, order="C") for name, array in arrays.items()}))
    start = 8 + int.from_bytes(content[:8], "little")
    said = {"__metadata__": dict(metadata)} if metadata else {}  # whose order the library draws by chance
    header = json.dumps(said | json.loads(bytes(content[8:start])), separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with aside(path) as temporary, temporary.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.write(content[start:])
        file.flush()
        os.fsync(file.fileno())


WRITTEN = (".csv", ".jsonl", ".parquet")


def check_output(path: Path) -> None:
    """Raises UserError if the suffix of a file to write is none of `WRITTEN`."""
    if path.suffix not in WRITTEN:
        raise UserError(f"{path}: the suffix says the format: one of {', '.join(WRITTEN)}")
