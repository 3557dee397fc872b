"""`best/` of a run: what trained, and what it stands on, with a digest over all of it that is checked when it is read."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from jaxface.digests import file_digest
from jaxface.errors import UserError
from jaxface.files import write_arrays, write_json
from jaxface.runs.parts import Arrays, fingerprint

FORMAT = 2
"""Of `best/`: from 2 on `base_sha256` is of the base weights as they are stored, and the files carry digests."""
STATISTICS = (".norm.mean", ".norm.variance")
"""Ends of the names of batch norms' running statistics, which stand beside what trained."""


class Best(NamedTuple):
    """What `best/` holds.

    Attributes:
      arrays: what trained and the batch statistics, by name.
      info: step, epoch, accuracy; `base` (path of the base weights as it was given), `base_relative` (the same from the run folder),
        `base_sha256` (see `jaxface.runs.base`), `data_sha256` (of each prepared set), `format`, `framing` where it is not as usual.
    """

    arrays: dict[str, np.ndarray]
    info: dict[str, Any]


def save_best(folder: Path, arrays: Arrays, info: Mapping[str, Any]) -> None:
    """Writes what trained, and where the rest comes from, into `best/`."""
    arrays = {name: np.asarray(leaf) for name, leaf in arrays.items()}
    record = {**info, "format": FORMAT}
    text = json.dumps(record)
    write_arrays(folder / "best" / "trained.safetensors", arrays, {"info": text, "sha256": _digest(arrays, text)})
    write_json(folder / "best" / "info.json", record)


def read_best(folder: Path) -> Best:
    """What a run has trained. Raises UserError if there is none yet, if it is damaged, or if it has NaN or infinity in it."""
    path = require_best(folder)
    try:
        with safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            metadata = file.metadata() or {}
        info = json.loads(path.with_name("info.json").read_bytes())
        if metadata.get("sha256") != _digest(arrays, metadata.get("info", "")) and (
            metadata.keys() != {"info"} or info.get("format", 1) != 1
        ):
            raise ValueError("damaged: its content is not what was saved")
        if json.loads(metadata["info"]) != info:
            raise ValueError("damaged: info.json beside it says something else than itself")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error}): copy the run again, or train it again") from error
    for name, array in arrays.items():
        if not np.isfinite(array.astype(np.float32)).all():
            raise UserError(f"{path}: {name} has NaN or infinity in it: train the run again, with lower learning rates")
    return Best(arrays, info)


def require_best(folder: Path) -> Path:
    """The file of what a run has trained. Raises UserError if there is none yet."""
    path = folder / "best" / "trained.safetensors"
    if not path.is_file():
        raise UserError(f"{folder} has no best model yet: train it for an epoch first")
    return path


def model_digest(folder: Path) -> str:
    """SHA-256 of the file of what a run has trained: it names the model. Raises UserError if there is none yet."""
    return file_digest(require_best(folder))


def trained_size(folder: Path) -> int:
    """The number of values that a run has trained, batch statistics left out."""
    with safe_open(folder / "best" / "trained.safetensors", "numpy") as file:
        names = [name for name in file.keys() if not name.endswith(STATISTICS)]  # noqa: SIM118 (no mapping)
        return sum(math.prod(file.get_slice(name).get_shape()) for name in names)


def _digest(arrays: Arrays, text: str) -> str:
    return hashlib.sha256(f"{fingerprint(arrays)} {text}".encode()).hexdigest()
