"""What is predicted: a task is a name and its classes. The thesis's three stand here; another is one `register_task` away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxface.errors import UserError
from jaxface.registry import Registry

MISSING = -1
"""The label of a sample that does not carry a task."""


@dataclass(frozen=True)
class Task:
    """One classification task.

    Attributes:
      name: as commands, batches and output columns use it.
      classes: the names of its classes; a label is an index into them.
      ordinal: whether the classes have an order, so that being off by one class means something.
      coarse: the task whose classes are groups of this one's, which answers are mapped back to; '' for none.
      group: the coarse class of each class.
      synonyms: further names of classes in tables: ("woman", "female").
    """

    name: str
    classes: tuple[str, ...]
    ordinal: bool = False
    coarse: str = ""
    group: tuple[int, ...] = ()
    synonyms: tuple[tuple[str, str], ...] = field(default=(), compare=False, repr=False)

    @property
    def num_classes(self) -> int:
        return len(self.classes)


TASKS: Registry[Task] = Registry("task")
get_task = TASKS.get


def register_task(task: Task) -> Task:
    """Makes a task known by its name. Raises ValueError if another one has that name."""
    if task.name in TASKS and TASKS.get(task.name) != task:
        raise ValueError(f"a task named {task.name!r} exists already")
    return TASKS.add(task.name, task)


# thesis, sections 2.7.1 and 2.7.4: the classes and their order
AGE = register_task(Task("age", ("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "70+"), ordinal=True))
GENDER = register_task(
    Task(
        "gender",
        ("male", "female"),
        synonyms=(("m", "male"), ("man", "male"), ("f", "female"), ("w", "female"), ("woman", "female")),
    )
)
EMOTION = register_task(
    Task(
        "emotion",
        ("surprise", "fear", "disgust", "happy", "sad", "angry", "neutral"),
        synonyms=(
            *(("surprised", "surprise"), ("fearful", "fear"), ("disgusted", "disgust"), ("happiness", "happy"), ("joy", "happy")),
            *(("sadness", "sad"), ("anger", "angry"), ("neutrality", "neutral")),
        ),
    )
)

AGE_STARTS = (0, 3, 10, 20, 30, 40, 50, 60, 70)
"""The first year of each age group."""


def with_coarse(tasks: Sequence[str]) -> tuple[str, ...]:
    """The tasks, and after them those that their answers are mapped back to: what is evaluated."""
    return tuple(dict.fromkeys((*tasks, *(task.coarse for task in map(get_task, tasks) if task.coarse))))


def age_group(years: float) -> int:
    """The age group (an index into `AGE.classes`) of an age in years, 0 <= years < 150. Raises UserError outside."""
    if not 0 <= years < 150:
        raise UserError(f"an age of {years} years is out of range (0 to 149)")
    return sum(years >= start for start in AGE_STARTS) - 1


OLDEST = 100
"""Years from which on ages are not told apart."""

AGE_YEARS = register_task(
    Task(
        "age_years",
        (*map(str, range(OLDEST)), f"{OLDEST}+"),
        ordinal=True,
        coarse=AGE.name,
        group=tuple(age_group(years) for years in range(OLDEST + 1)),
    )
)
"""Age in single years, for ordinal regression (thesis, section 5.2)."""


def age_labels(years: float) -> dict[str, int]:
    """The labels that an age in years gives, of both tasks. Raises UserError outside 0 to 149."""
    return {AGE.name: age_group(years), AGE_YEARS.name: min(int(years), OLDEST)}
