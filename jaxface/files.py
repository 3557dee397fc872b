"""Files that are whole or not there: written aside, then renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxface.errors import UserError


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, whose folder is made, that becomes it at the end, or vanishes on an error.

    Raises UserError if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON that people can read."""
    with aside(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file that is on the disk when its name is. Raises UserError if it cannot be written."""
    from safetensors.numpy import save

    content = save({name: np.asarray(array, order="C") for name, array in arrays.items()}, dict(metadata))
    with aside(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


WRITTEN = (".csv", ".jsonl", ".parquet")


def check_output(path: Path) -> None:
    """Raises UserError if the suffix of a file to write is none of `WRITTEN`."""
    if path.suffix not in WRITTEN:
        raise UserError(f"{path}: the suffix says the format: one of {', '.join(WRITTEN)}")
