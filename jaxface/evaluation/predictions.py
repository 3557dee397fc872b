"""A model's answers on a data set: what every figure is computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxface.data.tasks import MISSING, Task


@dataclass(frozen=True)
class Predictions:
    """A model's answers, one row a record.

    Attributes:
      tasks: the tasks, whose classes are in the order of the logits.
      id: `[N]` str.
      labels: per task `[N, ...]` as its kind keeps them (see `jaxface.data.kinds`): of classes int, `MISSING` where the record has none.
      logits: per task `[N, W]` float32, what its head gives.
      source: `[N]` str, the data set that the record is from; empty if not given.
      person: `[N]` str, '' where unknown; empty if not given.
      features: `[N, D]` float32 or none.
      task_features: per task `[N, D]` float32 where each task has features of its own (MTLoRA); empty otherwise.
      groups: further columns that records are grouped by (`race`), `[N]` str, '' where unknown.
      about: anything worth keeping beside (the run's name, the split): JSON.

    Raises ValueError if the arrays do not fit each other.
    """

    tasks: tuple[Task, ...]
    id: np.ndarray
    labels: Mapping[str, np.ndarray]
    logits: Mapping[str, np.ndarray]
    source: np.ndarray = None  # ty: ignore[invalid-assignment]  an array once it is made
    person: np.ndarray = None  # ty: ignore[invalid-assignment]
    features: np.ndarray | None = None
    task_features: Mapping[str, np.ndarray] = field(default_factory=dict)
    groups: Mapping[str, np.ndarray] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = len(self.id)
        for name in ("id", "source", "person"):
            values = getattr(self, name)
            object.__setattr__(self, name, np.full(rows, "", object) if values is None else np.asarray(values, object))
        object.__setattr__(self, "tasks", tuple(self.tasks))
        blanks = {task.name: task.of.array(task, [None]) for task in self.tasks}
        object.__setattr__(self, "labels", {name: np.asarray(self.labels[name], blank.dtype) for name, blank in blanks.items()})
        object.__setattr__(self, "logits", {task.name: np.asarray(self.logits[task.name], np.float32) for task in self.tasks})
        shapes = {"source": (self.source, (rows,)), "person": (self.person, (rows,))}
        for task in self.tasks:
            shapes[f"labels of {task.name}"] = (self.labels[task.name], (rows, *blanks[task.name].shape[1:]))
            shapes[f"logits of {task.name}"] = (self.logits[task.name], (rows, task.width))
        for name, (values, shape) in shapes.items():
            if values.shape != shape:
                raise ValueError(f"{name}: shape {values.shape}, expected {shape}")
        for task in self.tasks:
            labels = self.labels[task.name]
            most = 2 if labels.ndim > 1 else task.num_classes
            if rows and labels.dtype.kind != "f" and not (labels.min() >= MISSING and labels.max() < most):
                raise ValueError(f"labels of {task.name}: outside {MISSING} to {most - 1}")
        shared = {} if self.features is None else {"features": self.features}
        for name, values in {**shared, **self.task_features}.items():
            if values.ndim != 2 or len(values) != rows:
                raise ValueError(f"{name}: shape {values.shape}, expected ({rows}, D)")
        for name, values in self.groups.items():
            if np.shape(values) != (rows,):
                raise ValueError(f"group {name}: shape {np.shape(values)}, expected ({rows},)")

    def __len__(self) -> int:
        return len(self.id)

    def right(self, task: Task) -> np.ndarray:
        """Which labelled answers `[N]` are right, as the task's kind has it."""
        return task.of.right(task, self.logits[task.name], self.labels[task.name])

    def shares(self, task: Task) -> np.ndarray:
        """Probabilities, or numbers in their unit, `[N, W]`."""
        return task.of.shares(task, self.logits[task.name])

    def says_how_sure(self, task: Task) -> bool:
        """Whether its answers to a task have probabilities: those of other models may be classes alone."""
        return task.name not in self.about.get("no_confidence", ())

    def rows(self, chosen: np.ndarray, tasks: Sequence[Task] | None = None) -> Predictions:
        """Some of the records, without features."""
        tasks = self.tasks if tasks is None else tuple(tasks)
        return Predictions(
            tasks,
            labels={task.name: self.labels[task.name][chosen] for task in tasks},
            logits={task.name: self.logits[task.name][chosen] for task in tasks},
            groups={name: values[chosen] for name, values in self.groups.items()},
            about=self.about,
            **{name: getattr(self, name)[chosen] for name in ("id", "source", "person")},
        )

    def predicted(self, task: str) -> np.ndarray:
        """The answers `[N, ...]` as labels: of classes those with the highest logits."""
        (of,) = (one for one in self.tasks if one.name == task)
        return of.of.decided(of, self.logits[task])
