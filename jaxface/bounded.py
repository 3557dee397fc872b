"""Small texts of files, read within limits: whoever wrote the file decides neither how much memory nor how much time it takes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any


def read_small(path: Path, limit: int) -> bytes:
    """The bytes of a file of at most `limit`. Raises OSError, and ValueError for a larger one."""
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"more than {limit:,} bytes")
    return content


def parse_json(text: bytes | str) -> Any:
    """A value of JSON text. Raises ValueError for what is none, is nested too deeply, or names a key twice."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice[:60]!r} stands there twice")
    return found
