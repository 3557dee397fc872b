"""The kind of task that is a number with its unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxface.data.kinds import Json, Kind, Note, Task, known, register_kind
from jaxface.data.shares import named, softmax
from jaxface.data.tables import number_of
from jaxface.errors import UserError


@register_kind("regression")
class Regression(Kind):
    """A number with its unit: predicted as it is, or, where the task has classes, as a distribution over those steps, whose mean counts."""

    outputs = ("number", "classes", "ranks")

    def loss(self, task: Task) -> str:
        return "soft" if task.classes else "huber"

    def check(self, task: Task) -> None:
        if task.classes and (len(task.values) < 2 or (np.diff(task.values) <= 0).any()):
            raise UserError(f"task {task.name}: expected steps of a number as `classes`, rising; got {list(task.classes[:5])}")
        if not (math.isfinite(task.center) and 0 < task.scale < math.inf and 0 <= task.within < math.inf):
            raise UserError(f"task {task.name}: center {task.center}, scale {task.scale}, within {task.within}: expected a scale above 0")

    def says(self, task: Task) -> str:
        steps = f", in {task.num_classes} steps" if task.classes else ""
        return f"a number{f' in {task.unit}' if task.unit else ''}{steps}"

    def width(self, task: Task) -> int:
        return task.num_classes or 1

    def read(self, task: Task, text: Any, where: str, note: Note | None = None) -> Any:
        number = number_of(str(text).removesuffix(task.unit).strip())
        if number is None:
            raise UserError(f"{where}: {task.name} {text!r} is no number")
        return number

    def array(self, task: Task, labels: Sequence[Any]) -> np.ndarray:
        return np.array([np.nan if label is None else label for label in labels], np.float64)

    def measured(self, task: Task, labels: Sequence[Any]) -> Task:
        if not labels or (task.center, task.scale) != (0.0, 1.0):
            return task
        spread = float(f"{np.std(labels):.4g}") or 1.0
        return replace(task, center=float(f"{np.mean(labels):.4g}"), scale=spread, within=task.within or float(f"{spread / 2:.1g}"))

    def counts(self, task: Task, labels: np.ndarray) -> list[int]:
        there = labels[known(labels)]
        return np.bincount(self._nearest(task, there), minlength=task.num_classes).tolist() if task.classes else [len(there)]

    def targets(self, task: Task, labels: Any) -> Any:
        """Of a number as it is the standardised one; of one in steps the nearest step."""
        xp = labels.__array_namespace__()
        labels = xp.where(known(labels), labels, task.center)
        return self._nearest(task, labels) if task.classes else (labels - task.center) / task.scale

    def _nearest(self, task: Task, labels: Any) -> Any:
        return abs(labels[:, None] - labels.__array_namespace__().asarray(task.values, dtype=labels.dtype)).argmin(-1)

    def numbers(self, task: Task, outputs: Any) -> Any:
        """The predicted numbers `[N]`, from what the head gives `[N, W]`."""
        if not task.classes:
            return outputs[..., 0] * task.scale + task.center
        xp = outputs.__array_namespace__()
        shares = xp.exp(outputs - outputs.max(-1, keepdims=True))
        return (shares * xp.asarray(task.values, dtype=outputs.dtype)).sum(-1) / shares.sum(-1)

    def right(self, task: Task, outputs: Any, labels: Any) -> Any:
        return (abs(self.numbers(task, outputs) - labels) <= task.within) & known(labels)

    def decided(self, task: Task, outputs: np.ndarray) -> np.ndarray:
        return self.numbers(task, outputs.astype(np.float64))

    def shares(self, task: Task, outputs: np.ndarray) -> np.ndarray:
        return softmax(outputs) if task.classes else np.asarray(outputs, np.float64) * task.scale + task.center

    def answer(self, task: Task, shares: np.ndarray, calibrated: np.ndarray) -> Json:
        value = float(shares @ task.values if task.classes else shares[0])
        answer = {"value": float(f"{value:.6g}"), "unit": task.unit}
        return answer | ({"probabilities": named(task.classes, shares)} if task.classes else {})

    def confidence(self, task: Task, shares: np.ndarray) -> np.ndarray:
        """Of a distribution minus its standard deviation; a number as it is says nothing of it."""
        if not task.classes:
            return np.zeros(len(shares))
        mean = shares @ task.values
        return -np.sqrt(np.maximum(shares @ task.values**2 - mean**2, 0))

    def in_set(self, task: Task, shares: np.ndarray, limit: float) -> Any:
        number = float(shares @ task.values if task.classes else shares[0])
        return [None, None] if math.isinf(limit) else [float(f"{number - limit:.6g}"), float(f"{number + limit:.6g}")]

    def tempered(self, task: Task, shares: np.ndarray, temperature: float) -> np.ndarray:
        return shares

    def row(self, task: Task, answer: Json) -> np.ndarray:
        return super().row(task, answer) if task.classes else np.array([answer["value"]])

    def columns(self, task: Task) -> dict[str, type]:
        return {task.name: float}

    def cells(self, task: Task, answer: Json) -> Json:
        return {task.name: answer["value"]}

    def what(self, task: Task) -> str:
        number = f"a standardised number: {task.name} = {task.center:g} + {task.scale:g} * output {task.unit}"
        return "logits of steps" if task.classes else number.strip()

    def words(self, task: Task, answer: Json) -> str:
        return f"{task.name} {answer['value']:.4g} {task.unit}".strip()

    def label_words(self, task: Task, label: Any) -> str:
        return f"{label:.4g} {task.unit}".strip()
