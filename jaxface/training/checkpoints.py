"""The latest state of a run, saved in the background and never half: what exact resume needs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxface.errors import UserError
from jaxface.training.step import TrainState

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports every save there


class Saved(NamedTuple):
    """A state on the host's side of a step.

    Attributes:
      state: the state of one device.
      host: what the loop carries besides (plateau, best value, epoch), JSON.
      input: the input pipeline's position, JSON.
    """

    state: TrainState
    host: dict[str, Any]
    input: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, the last two kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True, enable_async_checkpointing=True)
        try:
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)
        except OSError as error:
            raise UserError(f"{folder}: cannot write checkpoints there ({error.strerror or error})") from error

    def save(self, saved: Saved) -> None:
        """Starts saving; a step that is saved already is left alone. Raises UserError if an earlier save could not be written."""
        step = int(saved.state.step)
        if step in self._manager.all_steps():
            return
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(saved.state._asdict()), host=ocp.args.JsonSave(saved.host), input=ocp.args.JsonSave(saved.input)
        )
        try:
            self._manager.save(step, args=args)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder}: the checkpoint of step {step} could not be written ({error})") from error

    def restore(self, like: TrainState) -> Saved | None:
        """The newest state that can be read, shaped as `like`; None if there is none. One that cannot be read is passed over, and said."""
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype), like._asdict())
        for step in sorted(self._manager.all_steps(), reverse=True):
            args = ocp.args.Composite(state=ocp.args.StandardRestore(target), host=ocp.args.JsonRestore(), input=ocp.args.JsonRestore())
            try:
                restored = self._manager.restore(step, args=args)
                return Saved(TrainState(**restored["state"]), restored["host"], restored["input"])
            except Exception as error:
                logging.getLogger(__name__).warning("%s: step %d cannot be read (%s)", self.folder, step, str(error).splitlines()[0])
                self._manager.delete(step)
        return None

    def wait(self) -> None:
        """Returns when all saves are on disk. Raises UserError if one could not be written."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise UserError(f"{self.folder}: the last checkpoint could not be written ({error})") from error

    def close(self) -> None:
        """Waits for the last save and lets go of the folder."""
        self.wait()
        self._manager.close()
