"""What a task is, and the kinds of it: one of several classes, classes in an order, several labels at once, a number.

A label is what its kind's `read` makes of a table's cell; labels of many records are one array that says by itself where they are missing:
whole numbers `[N]` (`MISSING`), numbers `[N]` (not a number), or 0 and 1 for each of several labels `[N, C]` (`MISSING`).

Another kind is a subclass of `Kind` below `@register_kind("name")`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from jaxface.data.shares import digits, named, sigmoid, softmax
from jaxface.data.tables import SEPARATORS, number_of, parts_of, plain
from jaxface.errors import UserError
from jaxface.registry import Registry

MISSING = -1
"""The label of a sample that does not carry a task."""
Json = dict[str, Any]
Note = Callable[[str], None]


@dataclass(frozen=True)
class Task:
    """Something that is predicted.

    Attributes:
      name: as commands, batches and output columns use it.
      classes: the names of its classes; a label is an index into them. Of a number's task the steps that it is predicted in, if any.
      ordinal: whether the classes have an order, so that being off by one class means something.
      coarse: the task whose classes are groups of this one's, which answers are mapped back to; '' for none.
      group: the coarse class of each class.
      synonyms: further names of classes in tables: ("woman", "female").
      kind: a name in `KINDS`; '' for classes, in an order or not.
      unit: of a number.
      within: how far off a number may be to count as right.
      center, scale: mean and standard deviation of a number's training labels: its head predicts (number - center) / scale.
      column: what tables call it, where that is not its name.
    """

    name: str
    classes: tuple[str, ...] = ()
    ordinal: bool = False
    coarse: str = ""
    group: tuple[int, ...] = ()
    synonyms: tuple[tuple[str, str], ...] = field(default=(), compare=False, repr=False)
    kind: str = field(default="", repr=False)
    unit: str = field(default="", repr=False)
    within: float = field(default=0.0, compare=False, repr=False)
    center: float = field(default=0.0, compare=False, repr=False)
    scale: float = field(default=1.0, compare=False, repr=False)
    column: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        kind = self.kind or ("ordinal" if self.ordinal else "classification")
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "ordinal", kind == "ordinal")

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def of(self) -> Kind:
        """Its kind. Raises UserError for an unknown one."""
        return KINDS.get(self.kind)

    @property
    def width(self) -> int:
        """Values that its head gives."""
        return self.of.width(self)

    @cached_property
    def values(self) -> np.ndarray:
        """The numbers `[C]` that its classes are named after (`100+` is 100); empty where one is no number."""
        numbers = [name.removesuffix("+").strip() for name in self.classes]
        found = [number_of(number) for number in numbers]
        return np.array([] if None in found else found, np.float64)

    @property
    def says(self) -> str:
        """Its kind and classes in a few words."""
        return self.of.says(self)


def known(labels: Any) -> Any:
    """Which records `[N]` carry a label, whatever its kind; of NumPy's arrays or JAX's."""
    there = labels == labels if labels.dtype.kind == "f" else labels != MISSING
    return there.any(-1) if there.ndim > 1 else there


def blank_like(labels: np.ndarray, count: int) -> np.ndarray:
    """Labels of the same kind for so many records that carry none."""
    value = np.nan if labels.dtype.kind == "f" else MISSING
    return np.full((count, *labels.shape[1:]), value, labels.dtype)


class Kind:
    """What the data know of a kind of task: how cells are read, labels are kept, and answers are put.

    Attributes:
      outputs: which outputs of a head (`jaxface.models.heads.OUTPUTS`) its losses may be for.
    """

    outputs: tuple[str, ...] = ("classes", "ranks")

    def loss(self, task: Task) -> str:
        """What its task is trained with unless said otherwise, a name in `jaxface.objectives.losses.LOSSES`."""
        return "cross_entropy"

    def check(self, task: Task) -> None:
        """Raises UserError for a task that makes no sense."""
        if task.num_classes < 2:
            raise UserError(f"task {task.name}: expected at least two classes, got {list(task.classes)}")

    def says(self, task: Task) -> str:
        """The kind and the classes in a few words."""
        return f"{task.kind}, {task.num_classes} classes"

    def width(self, task: Task) -> int:
        """Values that the head gives."""
        return task.num_classes

    def read(self, task: Task, text: Any, where: str, note: Note | None = None) -> Any:
        """The label in a cell that is not blank: a text, or a list of them. Raises UserError for one that is none."""
        return class_index(task, text, where, note)

    def array(self, task: Task, labels: Sequence[Any]) -> np.ndarray:
        """The labels of records `[N, ...]`; None where one has none."""
        return np.array([MISSING if label is None else label for label in labels], np.int64)

    def measured(self, task: Task, labels: Sequence[Any]) -> Task:
        """The task with what it is to know of its training labels."""
        return task

    def counts(self, task: Task, labels: np.ndarray) -> list[int]:
        """How many records each class has."""
        return np.bincount(labels[known(labels)], minlength=task.num_classes).tolist()

    def targets(self, task: Task, labels: Any) -> Any:
        """Labels `[N, ...]` as its losses take them, of NumPy's arrays or JAX's; anything finite where they are missing."""
        return labels.clip(0)

    def right(self, task: Task, outputs: Any, labels: Any) -> Any:
        """Which labelled answers `[N]` are right, from what the head gives `[N, W]`; of NumPy's arrays or JAX's."""
        return (outputs.argmax(-1) == labels) & known(labels)

    def decided(self, task: Task, outputs: np.ndarray) -> np.ndarray:
        """What the head's values `[N, W]` say, as labels `[N, ...]`."""
        return outputs.argmax(-1)

    def shares(self, task: Task, outputs: np.ndarray) -> np.ndarray:
        """Probabilities, or numbers in their unit, `[N, W]` in double precision, from what the head gives."""
        return softmax(outputs)

    def answer(self, task: Task, shares: np.ndarray, calibrated: np.ndarray) -> Json:
        """What is said of one image, from its `shares` `[W]`, as they are and with the fitted temperature."""
        best = int(shares.argmax())
        return {"class": task.classes[best], "confidence": digits(calibrated[best]), "probabilities": named(task.classes, shares)}

    def confidence(self, task: Task, shares: np.ndarray) -> np.ndarray:
        """How sure each answer is `[N]`, for comparison among those of one task, from their shares `[N, W]`."""
        return shares.max(-1)

    def in_set(self, task: Task, shares: np.ndarray, limit: float) -> Any:
        """What is at most `limit` away from being answered: the classes, or the range of a number."""
        return [name for name, share in zip(task.classes, shares, strict=True) if 1 - share <= limit]

    def tempered(self, task: Task, shares: np.ndarray, temperature: float) -> np.ndarray:
        """Shares `[..., W]` as they are with a temperature."""
        flat = np.maximum(shares, 1e-12) ** (1 / temperature)
        return flat / flat.sum(-1, keepdims=True)

    def row(self, task: Task, answer: Json) -> np.ndarray:
        """The `shares` `[W]` that an answer was made of."""
        return np.array([*answer["probabilities"].values()])

    def columns(self, task: Task) -> dict[str, type]:
        """Columns of a table of answers, with their types."""
        return {task.name: str, f"{task.name}_confidence": float} | {f"{task.name}_{name}": float for name in task.classes}

    def cells(self, task: Task, answer: Json) -> Json:
        """An answer in those columns."""
        shares = {f"{task.name}_{name}": value for name, value in answer["probabilities"].items()}
        return {task.name: answer["class"], f"{task.name}_confidence": answer["confidence"]} | shares

    def what(self, task: Task) -> str:
        """What the head's values are, for whoever reads an export."""
        return "logits"

    def words(self, task: Task, answer: Json) -> str:
        """An answer in a few words, to be written into a picture."""
        return f"{answer['class']} {100 * answer['confidence']:.0f} %"

    def label_words(self, task: Task, label: Any) -> str:
        """A label in words."""
        return task.classes[int(label)]


KINDS: Registry[Kind] = Registry("kind of task")


def register_kind(name: str) -> Callable[[type[Kind]], type[Kind]]:
    """Decorator that makes a kind of task known by its name."""

    def add(kind: type[Kind]) -> type[Kind]:
        KINDS.add(name, kind())
        return kind

    return add


register_kind("classification")(Kind)


@register_kind("ordinal")
class Ordinal(Kind):
    """Classes in an order."""


@register_kind("multi-label")
class MultiLabel(Kind):
    """Any number of labels at once; a record carries all of them, or none where its cell is blank."""

    outputs = ("labels",)

    def loss(self, task: Task) -> str:
        return "binary_cross_entropy"

    def check(self, task: Task) -> None:
        if not task.classes:
            raise UserError(f"task {task.name}: expected the names of its labels as `classes`")

    def says(self, task: Task) -> str:
        return f"several of {task.num_classes} labels"

    def read(self, task: Task, text: Any, where: str, note: Note | None = None) -> Any:
        chosen = {class_index(task, part, where, note) for part in parts_of(text, task.classes)}
        return tuple(int(index in chosen) for index in range(task.num_classes))

    def array(self, task: Task, labels: Sequence[Any]) -> np.ndarray:
        none = (MISSING,) * task.num_classes
        return np.array([none if label is None else label for label in labels], np.int8).reshape(-1, task.num_classes)

    def counts(self, task: Task, labels: np.ndarray) -> list[int]:
        return (labels > 0).sum(0).tolist()

    def right(self, task: Task, outputs: Any, labels: Any) -> Any:
        return (((outputs > 0) == (labels > 0)) | (labels == MISSING)).all(-1) & known(labels)

    def decided(self, task: Task, outputs: np.ndarray) -> np.ndarray:
        return (outputs > 0).astype(np.int8)

    def shares(self, task: Task, outputs: np.ndarray) -> np.ndarray:
        return sigmoid(outputs)

    def confidence(self, task: Task, shares: np.ndarray) -> np.ndarray:
        return np.maximum(shares, 1 - shares).min(-1)

    def tempered(self, task: Task, shares: np.ndarray, temperature: float) -> np.ndarray:
        return shares

    def answer(self, task: Task, shares: np.ndarray, calibrated: np.ndarray) -> Json:
        chosen = [name for name, share in zip(task.classes, shares, strict=True) if share > 0.5]
        confidence = digits(np.maximum(calibrated, 1 - calibrated).min())
        return {"labels": chosen, "confidence": confidence, "probabilities": named(task.classes, shares)}

    def cells(self, task: Task, answer: Json) -> Json:
        return super().cells(task, {**answer, "class": SEPARATORS[0].join(answer["labels"])})

    def words(self, task: Task, answer: Json) -> str:
        return f"{task.name}: {', '.join(answer['labels']) or 'none'}"

    def label_words(self, task: Task, label: Any) -> str:
        return ", ".join(name for name, there in zip(task.classes, label, strict=True) if there > 0) or "none"


def class_index(task: Task, text: Any, where: str, note: Note | None = None) -> int:
    """A class from its name or a usual synonym, in any case. Raises UserError for anything else."""
    text = unicodedata.normalize("NFC", str(text))
    if text in task.classes:
        return task.classes.index(text)
    names = {plain(name): name for name in task.classes}
    other = {plain(word): name for word, name in task.synonyms}
    word = plain(text)
    if word not in names and word not in other:
        classes = ", ".join(task.classes[:30]) + (f" and {task.num_classes - 30} more" if task.num_classes > 30 else "")
        raise UserError(f"{where}: {task.name} {text!r} is out of range; known: {classes}")
    if word not in names and note is not None and len(word) > 1:  # m and f need no explanation
        note(f"{text} as {other[word]}")
    return task.classes.index(names.get(word) or other[word])
