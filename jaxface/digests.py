"""The SHA-256 of every file of a folder that we write, in `digests.json` beside them: what reads a file notices what happened to it.

Whoever writes a file again through `jaxface.files.aside` takes it out of the list, and `record_digests` puts it in.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from jaxface.errors import UserError
from jaxface.files import DIGESTS, read_object, write_json


def file_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp_of(path: str | Path, content: bool = False) -> tuple[str | int, ...]:
    """What a file is known by: its size and time of change, or a hash of its content; an empty word for a file that cannot be read.

    Args:
      content: take the hash, which is slower and notices a file that was replaced by one of the same size and time.
    """
    try:
        if content:
            return (file_digest(Path(path)),)
        found = os.stat(path)
    except (OSError, ValueError):  # the latter for a name that no file can have
        return ("",)
    return found.st_size, found.st_mtime_ns


def combined(digests: Mapping[str, str]) -> str:
    """One SHA-256 for several named ones."""
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


def read_digests(folder: Path) -> dict[str, str]:
    """What `digests.json` says; nothing where a folder has none. Raises UserError if it cannot be read."""
    path = folder / DIGESTS
    if not path.is_file():
        return {}
    listed = read_object(path, "; copy the folder again").get("sha256")
    if not isinstance(listed, dict):
        raise UserError(f"{path}: lists no digests; copy the folder again")
    return {name: str(digest) for name, digest in listed.items()}


def record_digests(folder: Path, names: Iterable[str]) -> None:
    """Notes the digests of files that are written; those that are not there are forgotten."""
    known = read_digests(folder)
    for name in names:
        known.pop(name, None)
        if (folder / name).is_file():
            known[name] = file_digest(folder / name)
    if known or (folder / DIGESTS).exists():
        write_json(folder / DIGESTS, {"sha256": known})


def check_digest(path: Path) -> None:
    """Raises UserError if a file is not what was written; one that its folder's digests do not name is taken as it is."""
    expected = read_digests(path.parent).get(path.name)
    if expected is None:
        return
    if not path.is_file():
        raise UserError(f"{path} is missing: copy the whole folder again")
    if not is_whole(path, expected):
        raise UserError(
            f"{path}: damaged or changed: its content is not what was written; copy it again, or, if the change is yours, "
            f"delete its entry in {path.with_name(DIGESTS)}"
        )


def is_whole(path: Path, expected: str) -> bool:
    """Whether a file is there and has that SHA-256; one that stands as it stood is hashed once in a process."""
    try:
        stat = path.stat()
    except OSError:
        return False
    return path.is_file() and _cached(path, stat.st_size, stat.st_mtime_ns, stat.st_ino) == expected


@lru_cache(maxsize=4096)
def _cached(path: Path, size: int, changed: int, inode: int) -> str:
    return file_digest(path)
