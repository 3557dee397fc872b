"""What sources in JSON have in common: their files, the split in a file's name, and where a picture lies that was exported elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from jaxface.bounded import parse_json, read_small
from jaxface.data.cells import SPLIT_NAMES
from jaxface.data.records import SPLITS
from jaxface.errors import UserError, os_line

LIMIT = 1 << 31
"""Bytes of a file."""
FOLDERS = ("images", "image", "train2017", "val2017", "train", "val", "valid", "test", "data", "upload", "")
"""Where pictures lie beside a file, or beside the folder that it is in."""


def json_files(place: Path, kind: type, layout: str) -> Iterator[tuple[Path, Any]]:
    """The JSON files at or in a place, with their values. Raises UserError for one that cannot be read or holds no `kind`."""
    paths = [place] if place.is_file() else sorted(place.glob("*.json")) or sorted(place.glob("*/*.json"))
    if not paths:
        raise UserError(f"{place} holds no record (no .json file); it needs {layout}")
    for path in paths:
        try:
            value = parse_json(read_small(path, LIMIT))
        except OSError as error:
            raise UserError(os_line(error, path, "read")) from None
        except ValueError as error:
            raise UserError(f"{path}: not JSON ({error})") from None
        if not isinstance(value, kind):
            raise UserError(f"{path}: expected {layout}")
        yield path, value


def split_in(path: Path) -> str:
    """The split that a file's name, or its folder's, tells; train where none does."""
    for name in (path.stem, path.parent.name):
        for word in re.findall(r"[a-z]+", name.casefold()):
            if (split := SPLIT_NAMES.get(word, word)) in SPLITS:
                return split
    return "train"


def find_image(root: Path, first: Path, name: str) -> Path:
    """Where a picture lies: at `first`, or by its own name in a usual folder beside the file or one above."""
    if first.exists():
        return first
    plain = Path(name).name
    for above in (root, root.parent):
        for folder in FOLDERS:
            if (above / folder / plain).is_file():
                return above / folder / plain
    return first


def file_in(address: str) -> list[str]:
    """The names under which the picture of an address may lie: decoded, of a query (`?d=photos/1.jpg`), without an upload's prefix."""
    parts = urlsplit(address)
    names = [*parse_qs(parts.query).get("d", []), unquote(parts.path if parts.scheme or address.startswith("/") else address).lstrip("/")]
    return [*names, *(re.sub(r"^[0-9a-f]{8}-", "", Path(name).name) for name in names)]
