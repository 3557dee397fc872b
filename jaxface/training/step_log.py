"""The metrics of steps, read one step late: the device is busy with a step while the host reads the one before."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxface.cluster import is_first
from jaxface.devices import unreplicate
from jaxface.errors import UserError
from jaxface.files import write_json

Line = dict[str, Any]


class Pending(NamedTuple):
    """A step that was started: its number, the ids of its images, the records found unreadable up to it, and its metrics."""

    step: int
    ids: np.ndarray
    unreadable: int
    metrics: Any


class StepLog:
    """Reads the metrics of steps, and ends the run after too many that had to be skipped.

    Args:
      folder: of the run, for the names of records whose loss was not finite.
      every: steps between two lines.
      bad_steps: steps in a row without a finite loss and gradient that end the run.
      write: takes a step's number and its line of `metrics.jsonl`.
    """

    def __init__(self, folder: Path, every: int, bad_steps: int, write: Callable[[int, Line], None]) -> None:
        self.folder, self.every, self.bad_steps, self.write = folder, every, bad_steps, write
        self.pending: deque[Pending] = deque()
        self.seen: deque[tuple[int, np.ndarray]] = deque(maxlen=bad_steps)

    def add(self, step: int, ids: np.ndarray, unreadable: int, metrics: Any) -> None:
        """Takes a step that was started; its metrics may still be computed."""
        self.pending.append(Pending(step, ids, unreadable, metrics))

    def read(self, behind: int = 0) -> None:
        """Reads the steps taken but for the last `behind`. Raises UserError after too many in a row that were not finite."""
        while len(self.pending) > behind:
            step, ids, unreadable, metrics = self.pending.popleft()
            self.seen.append((step, ids))
            bad = int(unreplicate(metrics["bad"]))
            if bad >= self.bad_steps:
                self._give_up(step, bad)
            if step % self.every == 0:
                self.write(step, step_line(jax.tree.map(float, unreplicate(metrics)), unreadable))

    def _give_up(self, step: int, bad: int) -> None:
        path = self.folder / ("not_finite.json" if is_first() else f"not_finite-{jax.process_index()}.json")
        write_json(path, [{"step": step, "ids": [str(name) for name in ids]} for step, ids in self.seen])
        raise UserError(
            f"the loss or its gradient was not finite in {bad} steps in a row, up to step {step}: lower the learning rates, or look at "
            f"the records named in {path}; the last good state is in checkpoints/"
        )


def step_line(values: dict[str, Any], unreadable: int) -> Line:
    """A step's metrics under their names in `metrics.jsonl`; a task without a label in the batch has a weight alone."""
    line = {name: values[name] for name in ("loss", "gradient_norm") if math.isfinite(values[name])}
    line |= {"updates": int(values["updates"]), "skipped": int(values["skipped"]), "unreadable": unreadable}
    for name, key in (("losses", "loss"), ("accuracy", "accuracy"), ("weights", "weight")):
        line |= {f"{key}/{task}": value for task, value in values[name].items() if values["count"][task] or name == "weights"}
    return line
