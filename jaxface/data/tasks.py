"""The tasks that are known. The thesis's three are the built-in file; others come from a user's file, a prepared set, a run, or code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from jaxface.data.kinds import KINDS, MISSING, Kind, Task, blank_like, known
from jaxface.data.task_files import read_tasks
from jaxface.errors import UserError
from jaxface.registry import Registry

__all__ = ["AGE", "AGE_YEARS", "EMOTION", "GENDER", "KINDS", "MISSING", "TASKS", "Kind", "Task", "blank_like", "known"]

TASKS: Registry[Task] = Registry("task")
get_task = TASKS.get


def register_task(task: Task) -> Task:
    """Makes a task known by its name. Raises ValueError if another one has that name."""
    if task.name in TASKS and TASKS.get(task.name) != task:
        raise ValueError(f"a task named {task.name!r} exists already")
    return TASKS.add(task.name, task)


AGE, GENDER, EMOTION = map(register_task, read_tasks(Path(__file__).with_name("faces.toml")).values())

AGE_STARTS = (0, 3, 10, 20, 30, 40, 50, 60, 70)
"""The first year of each age group."""


def with_coarse(tasks: Iterable[str], tasks_known: Mapping[str, Task] | Registry[Task] = TASKS) -> tuple[str, ...]:
    """The tasks, and after them those that their answers are mapped back to: what is evaluated."""
    found = [tasks_known[name] for name in tasks]
    return tuple(dict.fromkeys((*(task.name for task in found), *(task.coarse for task in found if task.coarse))))


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

BUILT_IN: Mapping[str, Task] = dict(TASKS.items())
"""The tasks that every process knows: no run or set needs to describe them."""


def age_labels(years: float) -> dict[str, int]:
    """The labels that an age in years gives, of both tasks. Raises UserError outside 0 to 149."""
    return {AGE.name: age_group(years), AGE_YEARS.name: min(int(years), OLDEST)}
