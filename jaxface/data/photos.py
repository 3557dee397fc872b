"""Photos on disk as evaluation batches: each one whole image of one face."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxface.data import decoding
from jaxface.data.formats import suffixes
from jaxface.data.framing import PLAIN, frame
from jaxface.data.images import Unreadable
from jaxface.data.tasks import MISSING
from jaxface.errors import UserError, tell

SUFFIXES = suffixes()
"""Of names of photos, in lower case."""


def find_photos(paths: Sequence[str | Path]) -> list[Path]:
    """The files named, and all photos in the folders named and below them, sorted. Raises UserError if one is missing or none is found."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"{path}: no such file or folder")
    if not found:
        raise UserError(f"no photos ({', '.join(SUFFIXES)}) in {', '.join(map(str, paths))}")
    return found


def read_photo(path: Path, size: int, framing: str = PLAIN) -> np.ndarray:
    """A whole photo as uint8 [size, size, 3] RGB, as an encoder of that framing takes it. Raises Unreadable."""
    return frame(decoding.read_photo(path).pixels, size, framing)


def read_photos(paths: Sequence[Path], size: int, framing: str = PLAIN) -> np.ndarray:
    """Photos as uint8 [B, size, size, 3] RGB. Raises UserError that names the first one that cannot be read."""
    images = np.empty((len(paths), size, size, 3), np.uint8)
    for row, path in enumerate(paths):
        try:
            images[row] = read_photo(path, size, framing)
        except Unreadable as error:
            raise UserError(f"{path}: {error}") from None
    return images


def photo_batches(
    photos: Sequence[Path], tasks: Sequence[str], *, image_size: int, batch_size: int, framing: str = PLAIN
) -> Iterator[dict[str, Any]]:
    """Photos without labels in full batches, like those of `jaxface.data.pipeline.eval_batches`; unreadable ones are not valid."""
    for start in range(0, len(photos), batch_size):
        paths = photos[start : start + batch_size]
        images = np.zeros((batch_size, image_size, image_size, 3), np.uint8)
        valid = np.zeros(batch_size, bool)
        for row, path in enumerate(paths):
            try:
                images[row], valid[row] = read_photo(path, image_size, framing), True
            except Unreadable as error:
                tell(f"left out {path}: {error}")
        names = np.array([*map(str, paths), *[""] * (batch_size - len(paths))], object)
        nothing = np.full(batch_size, "", object)
        labels = {task: np.full(batch_size, MISSING, np.int32) for task in tasks}
        yield {"image": images, "valid": valid, "labels": labels, "id": names, "source": nothing, "person": nothing}
