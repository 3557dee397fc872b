"""The latest state of a run, saved in the background, whole or not at all: what exact resume needs.

Orbax writes and reads a checkpoint, a folder `save_00000042` with the state's arrays under their paths and a text beside them: what the
loop carries, and a SHA-256 of every array. Orbax itself takes a changed bit for what was saved; we look at the digests, and a state that
is not what was saved is passed over for the one before.

Files `step-00000042.safetensors`, which earlier versions wrote, are read as well.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import safe_open

from jaxface.cluster import is_first, of_first
from jaxface.errors import UserError, tell
from jaxface.runs.parts import fingerprint

KEPT = 2
"""Checkpoints that are kept: the newest, and the one before in case it cannot be read."""
FORMAT = 1
"""Of a save; a higher one is a later version's."""
CONSTANT = (".key",)
"""Fields that no step changes: a checkpoint from before they were saved goes on with what the run starts from."""
AVERAGED = (".average[", ".statistics[")
"""Averages of batch statistics start, where a checkpoint is from before they were saved, from the statistics themselves."""

Arrays = Mapping[str, np.ndarray]


class Saved(NamedTuple):
    """A state on the host's side of a step.

    Attributes:
      state: the state of one device: a pytree of arrays whose field `step` counts the batches seen.
      host: what the loop carries besides (plateau, best value), JSON.
    """

    state: Any
    host: dict[str, Any]


class Damaged(Exception):
    """A checkpoint is not what was saved."""


class Checkpoints:
    """The checkpoints of one run; of several processes the first writes and reads, and tells the others.

    Args:
      folder: a folder, or any other place that Orbax can write (`gs://...`).
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder: Any = _path(folder) if is_first() else folder
        self._good: list[int] = []  # saves that are known to be whole, the oldest first
        self._writer = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None
        self._orbax: Any = None
        logging.getLogger("concurrent.futures").setLevel(
            logging.CRITICAL
        )  # where Orbax's threads print tracebacks of what we say in a line
        if is_first():
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                for left in self.folder.glob("*.orbax-checkpoint-tmp*"):
                    left.rmtree()
                self._orbax = _manager(self.folder)
            except OSError as error:
                raise UserError(f"{self.folder}: cannot write checkpoints there ({error.strerror or error})") from error
            _hush()

    def saves(self) -> list[int]:
        """The numbers of the saves that are there, the newest first; they count on for as long as the run goes on."""
        return sorted((int(path.name.removeprefix("save_")) for path in self.folder.glob("save_*") if "." not in path.name), reverse=True)

    # ------------------------------------------------------------------ writing

    def save(self, saved: Saved) -> None:
        """Starts writing, after the save before. Raises UserError if that one could not be written."""
        self.wait()
        if is_first():
            arrays = {name: np.asarray(leaf) for name, leaf in _named(saved.state)}
            self._last = self._writer.submit(self._write, int(saved.state.step), arrays, json.dumps(saved.host))

    def _write(self, step: int, arrays: Arrays, host: str) -> None:
        import orbax.checkpoint as ocp

        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: the folder has vanished; the state of step {step} is not saved")
        empty = {name: [array.dtype.name, *array.shape] for name, array in arrays.items() if not array.size}
        text = json.dumps(
            {"format": FORMAT, "step": step, "host": host, "empty": empty, "sha256": {n: fingerprint({n: a}) for n, a in arrays.items()}}
        )
        number = max(self.saves(), default=-1) + 1
        items = ocp.args.Composite(
            arrays=ocp.args.PyTreeSave({name: array for name, array in arrays.items() if array.size}),
            text=ocp.args.JsonSave({"text": text, "sha256": _sha256(text)}),
        )
        try:
            self._orbax.save(number, args=items, force=True)
        except Exception as error:  # tensorstore's and Orbax's errors have no common kind
            raise UserError(f"{self.folder}: the state of step {step} cannot be written: {_short(error)}") from error
        self._good.append(number)
        self._clear_away()

    def _clear_away(self) -> None:
        """Removes the saves before the last `KEPT` good ones, and what earlier versions wrote once as many are there."""
        self._good = self._good[-KEPT:]
        for number in self.saves():
            if number not in self._good:
                self._orbax.delete(number)
        if len(self._good) == KEPT:
            for path in self._old_files():
                path.unlink(missing_ok=True)

    def wait(self) -> None:
        """Returns when all saves are on disk. Raises UserError if one could not be written; the one before is still there."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """Lets go of the folder once the last save has ended."""
        self._writer.shutdown()
        if self._orbax is not None:
            self._orbax.close()

    # ------------------------------------------------------------------ reading

    def restore(self, like: Any) -> Saved | None:
        """The newest state that can be read, shaped as `like`, in every process; None if there is none.

        One that is damaged is passed over, and said. Raises UserError if all are, and for one that is whole and has other fields or shapes
        than `like`: nothing is changed then.
        """
        return of_first(lambda: self._newest(like))

    def _newest(self, like: Any) -> Saved | None:
        damaged: list[str] = []
        for name, read in self._candidates():
            try:
                arrays, host = read()
            except UserError:
                raise
            except Exception as error:  # whatever a file cut short or a changed byte makes of a reader
                damaged.append(f"{name}: {_short(error)}")
                tell(f"{self.folder / name} is left out: {_short(error)}")
                continue
            return Saved(_shaped(arrays, like, f"{self.folder / name}"), host)
        if damaged:
            raise UserError(
                f"{self.folder}: no state in it is what was saved ({damaged[0]}): put a copy back, or remove that folder to start again at "
                "step 0, or choose another --name"
            )
        return None

    def _candidates(self) -> Iterator[tuple[str, Callable[[], tuple[Arrays, dict[str, Any]]]]]:
        for number in self.saves():
            yield _name(number), lambda number=number: self._read(number)
        for path in self._old_files():
            yield path.name, lambda path=path: _read_old(path)

    def _read(self, number: int) -> tuple[Arrays, dict[str, Any]]:
        import orbax.checkpoint as ocp

        items = ocp.args.Composite(arrays=ocp.args.PyTreeRestore(), text=ocp.args.JsonRestore())
        restored = self._orbax.restore(number, args=items)
        text = restored["text"]["text"]
        if _sha256(text) != restored["text"]["sha256"]:
            raise Damaged("its text is not what was saved")
        about = json.loads(text)
        if about.get("format", FORMAT) > FORMAT:
            raise UserError(f"{self.folder / _name(number)} was saved by a later version: go on with that one")
        arrays = {name: np.asarray(array) for name, array in restored["arrays"].items()}
        arrays |= {name: np.zeros(shape, dtype) for name, (dtype, *shape) in about["empty"].items()}
        wrong = [name for name in {**arrays, **about["sha256"]} if name not in arrays or _hash(name, arrays) != about["sha256"].get(name)]
        if wrong:
            raise Damaged(f"{wrong[0]} is not what was saved")
        self._good.append(number)
        return arrays, json.loads(about["host"])

    def _old_files(self) -> list[Any]:
        return sorted(self.folder.glob("step-*.safetensors"), key=lambda path: path.name, reverse=True)


def _name(number: int) -> str:
    """Of the folder of a save."""
    return f"save_{number:08d}"


def _path(folder: Path | str) -> Any:
    """A path of any file system."""
    from etils import epath

    if "://" not in str(folder):
        return epath.Path(Path(folder).absolute())
    try:
        path = epath.Path(folder)
        path.exists()  # asks whoever is there
    except Exception as error:  # of packages that may not even be installed
        raise UserError(f"{folder}: cannot write checkpoints there ({_short(error)})") from error
    return path


def _manager(folder: Any) -> Any:
    """Orbax for this process alone: the state is the same in all of them, and the others may not even see the folder."""
    import orbax.checkpoint as ocp

    alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix="jaxface")
    options = ocp.CheckpointManagerOptions(
        step_prefix="save", step_format_fixed_length=8, create=False, enable_async_checkpointing=False, multiprocessing_options=alone
    )
    return ocp.CheckpointManager(folder, options=options)


def _hush() -> None:
    """Keeps to itself what tensorstore's threads say when they have read an array after Orbax has given up on a damaged one."""
    before = sys.unraisablehook

    def hook(event: Any) -> None:
        if str(event.exc_value) != "Event loop is closed":
            before(event)

    if getattr(before, "__qualname__", "") != hook.__qualname__:
        sys.unraisablehook = hook


def _named(state: Any) -> list[tuple[str, Any]]:
    """The leaves of a state with their paths, as `.trained['encoder.pool.probe']`."""
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)]


def _shaped(arrays: Arrays, like: Any, where: str) -> Any:
    """The arrays as a state. Raises UserError that names a field which only one of the two has, or an array of another shape or type."""
    expected = {name: np.asarray(leaf) for name, leaf in _named(like)}
    arrays = _of_today(arrays, expected)
    advice = "go on with the version and the options that it was saved by, or choose another --name"
    for name in sorted(set(arrays) ^ set(expected)):
        if name in arrays:
            raise UserError(f"{where} has the field {name}, which this run does not know: {advice}")
        raise UserError(f"{where} lacks the field {name}, which this run has: {advice}")
    for name, leaf in expected.items():
        found = arrays[name]
        if (found.shape, found.dtype) != (leaf.shape, leaf.dtype):
            raise UserError(f"{where}: {name} is {found.dtype}{list(found.shape)}, this run's is {leaf.dtype}{list(leaf.shape)}: {advice}")
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in expected])


def _of_today(arrays: Arrays, expected: Arrays) -> Arrays:
    """A checkpoint's arrays with the fields that earlier versions did not save (`CONSTANT`, `AVERAGED`)."""
    later = {name: expected[name] for name in CONSTANT if name in expected}
    if any(name.startswith(AVERAGED[0]) for name in arrays):
        later |= {name.replace(AVERAGED[1], AVERAGED[0], 1): array for name, array in arrays.items() if name.startswith(AVERAGED[1])}
    return {**{name: array for name, array in later.items() if name in expected}, **arrays}


def _read_old(path: Any) -> tuple[Arrays, dict[str, Any]]:
    """A file of the versions before Orbax: the arrays, and in its metadata the rest with one hash over all."""
    with safe_open(str(path), "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        metadata = file.metadata()
    host = metadata["host"]
    if fingerprint({**arrays, "host": np.frombuffer(host.encode(), np.uint8)}) != metadata["sha256"]:
        raise Damaged("its content is not what was saved")
    return arrays, json.loads(host)


def _hash(name: str, arrays: Arrays) -> str:
    return fingerprint({name: arrays[name]})


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _short(error: Exception) -> str:
    """The first line of an error, with its kind where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
