"""The latest state of a run, saved in the background, whole or not at all: what exact resume needs.

A checkpoint is one file, `step-00000042.safetensors`: every array of the state under its path, and in the metadata what the loop
carries and a hash over all of it. It is written aside, forced to the disk, and renamed.

Orbax is not used: it keeps a checkpoint as a folder of many files with no hash over them, where a file cut short can be noticed late or
not at all; one file that is renamed when it is whole cannot be half written, and any byte that is lost shows when it is read.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxface.cluster import from_first, is_first
from jaxface.errors import UserError
from jaxface.files import write_arrays
from jaxface.runs.parts import fingerprint

KEPT = 2
"""Checkpoints that are kept: the newest, and the one before in case it cannot be read."""


class Saved(NamedTuple):
    """A state on the host's side of a step.

    Attributes:
      state: the state of one device: a pytree of arrays whose field `step` counts the batches seen.
      host: what the loop carries besides (plateau, best value), JSON.
    """

    state: Any
    host: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run; of several processes the first writes and reads, and tells the others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if is_first():
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{folder}: cannot write checkpoints there ({error.strerror or error})") from error
        self._writer = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def steps(self) -> list[int]:
        """The steps that are on disk, the newest first."""
        return sorted((int(path.stem.removeprefix("step-")) for path in self.folder.glob("step-*.safetensors")), reverse=True)

    def save(self, saved: Saved) -> None:
        """Starts writing, after the save before. Raises UserError if that one could not be written."""
        self.wait()
        if is_first():
            arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(saved.state)}
            self._last = self._writer.submit(self._write, int(saved.state.step), arrays, json.dumps(saved.host))

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.safetensors"

    def _write(self, step: int, arrays: Mapping[str, np.ndarray], host: str) -> None:
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: the folder has vanished; the state of step {step} is not saved")
        write_arrays(self._path(step), arrays, {"host": host, "sha256": _hash(arrays, host)})
        for old in self.steps()[KEPT:]:
            self._path(old).unlink(missing_ok=True)

    def restore(self, like: Any) -> Saved | None:
        """The newest state that can be read, shaped as `like`, in every process; None if there is none.

        One that cannot be read is passed over, and said.
        """
        return from_first(self._newest(like) if is_first() else None)

    def _newest(self, like: Any) -> Saved | None:
        for step in self.steps():
            path = self._path(step)
            try:
                return self._read(path, like)
            except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
                logging.getLogger(__name__).warning("%s is left out: %s", path, str(error).splitlines()[0])
                path.rename(path.with_suffix(".broken"))
        return None

    def _read(self, path: Path, like: Any) -> Saved:
        with safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            metadata = file.metadata()
        host = metadata["host"]
        if _hash(arrays, host) != metadata["sha256"]:
            raise ValueError("its content is not what was saved")
        leaves, tree = jax.tree_util.tree_flatten_with_path(like)
        found = [arrays[jax.tree_util.keystr(name)] for name, _ in leaves]
        if any(np.shape(leaf) != array.shape for (_, leaf), array in zip(leaves, found, strict=True)):
            raise ValueError("its arrays have other shapes than this run's")
        return Saved(jax.tree.unflatten(tree, found), json.loads(host))

    def wait(self) -> None:
        """Returns when all saves are on disk. Raises UserError if one could not be written; the one before is still there."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """Lets go of the folder once the last save has ended."""
        self._writer.shutdown()


def _hash(arrays: Mapping[str, np.ndarray], host: str) -> str:
    return fingerprint({**arrays, "host": np.frombuffer(host.encode(), np.uint8)})
