"""Tasks as files describe them: TOML that a user writes, JSON beside the data and in a run's configuration."""

from __future__ import annotations

import json
import re
import tomllib
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jaxface.data.numbers  # noqa: F401  it registers its kind
from jaxface.bounded import read_small
from jaxface.data.kinds import Json, Task
from jaxface.errors import UserError, os_line


def read_tasks(path: Path) -> dict[str, Task]:
    """The tasks of a TOML file, by name: a table each, with what `FIELDS` lists; `steps = [first, last, step]` stands for a number's
    classes, and `group` has the coarse classes by name: a list, or a table by class.

    Raises UserError that names the file and what is wrong.
    """
    try:
        text = read_small(path, MOST_BYTES).decode()
        content = tomllib.loads(re.sub(ACCENTED, r'\1["\2"]', text))
    except OSError as error:
        raise UserError(os_line(error, path, "read")) from None
    except (ValueError, RecursionError) as error:  # TOML's and UTF-8's own are ValueErrors
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None
    try:
        if not content:
            raise UserError("no task in it: a table [NAME] each")
        plain_values = {name: _written(name, value, content) for name, value in content.items()}
        tasks = {name: task_from(name, value) for name, value in plain_values.items()}
        check_coarse(tasks)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return tasks


def _written(name: str, value: Any, content: Mapping[str, Any]) -> Any:
    """A task's attributes with what only files written by hand have in the form of JSON's."""
    if not isinstance(value, dict):
        raise UserError(f"{name}: expected a table [{name}] of its attributes")
    value = dict(value)
    if "steps" in value:
        steps = value.pop("steps")
        numbers = isinstance(steps, list) and len(steps) == 3 and all(isinstance(one, int | float) for one in steps)
        if "classes" in value or not numbers or not 0 < steps[2] <= steps[1] - steps[0]:
            raise UserError(f"task {name}: steps {steps}: expected [first, last, step] in place of classes")
        count = round((steps[1] - steps[0]) / steps[2]) + 1
        if count > MOST_STEPS:
            raise UserError(f"task {name}: {count} steps are more than {MOST_STEPS}")
        value["classes"] = [f"{steps[0] + index * steps[2]:.12g}" for index in range(count)]
    group, coarse = value.get("group"), content.get(value.get("coarse", ""), {})
    if isinstance(group, dict):
        missing = [one for one in value.get("classes", ()) if one not in group]
        if missing:
            raise UserError(f"task {name}: group has no entry for {missing[0]!r}")
        group = [group[one] for one in value["classes"]]
    if group is not None and all(isinstance(one, str) for one in group):
        known = list(coarse.get("classes", ()))
        foreign = [one for one in group if one not in known]
        if foreign:
            raise UserError(f"task {name}: {foreign[0]!r} is no class of {value.get('coarse') or 'a coarse task'}: {', '.join(known)}")
        value["group"] = [known.index(one) for one in group]
    return value


def check_coarse(tasks: Mapping[str, Task]) -> None:
    """Raises UserError where a task's coarse classes are not there, or do not fit."""
    for task in tasks.values():
        if not task.coarse and not task.group:
            continue
        coarse = tasks.get(task.coarse)
        if coarse is None:
            raise UserError(f"task {task.name}: its coarse task {task.coarse or '(none)'} is not among {', '.join(tasks)}")
        if len(task.group) != task.num_classes or not all(0 <= index < coarse.num_classes for index in task.group):
            raise UserError(f"task {task.name}: group: expected a class of {coarse.name} for each of its {task.num_classes} classes")


def described(tasks: Iterable[Task]) -> dict[str, Json]:
    """The description of those tasks that are no plain classes, which their classes alone say all of."""
    return {task.name: task_to(task) for task in tasks if task.kind not in ("classification", "ordinal")}


def tasks_told(classes: Mapping[str, Sequence[str]], described: Mapping[str, Any]) -> dict[str, Task]:
    """The tasks of answers: their classes by name, and the whole description of those that are no plain classes."""
    plain = {name: Task(name, tuple(own)) for name, own in classes.items() if name not in described}
    return {name: plain[name] if name in plain else task_from(name, described[name]) for name in classes}


def write_tasks(tasks: Iterable[Task]) -> str:
    """Tasks as the text of a TOML file that `read_tasks` reads back."""
    lines = ["# What is predicted. A changed copy of this file is what --tasks-file takes."]
    for task in tasks:
        value = task_to(task)
        named = value.pop("synonyms", {})
        lines += ["", f"[{task.name if re.fullmatch(BARE, task.name) else json.dumps(task.name, ensure_ascii=False)}]"]
        lines += [f"{key} = {json.dumps(item, ensure_ascii=False)}" for key, item in value.items()]
        if named:
            pairs = (f"{json.dumps(word, ensure_ascii=False)} = {json.dumps(name, ensure_ascii=False)}" for word, name in named.items())
            lines.append(f"synonyms = {{ {', '.join(pairs)} }}")
    return "\n".join(lines) + "\n"


MOST_BYTES = 1 << 24
MOST_STEPS = 10_000
BARE = r"[A-Za-z0-9_-]+"
"""Names that TOML takes without quotes."""
ACCENTED = r"(?m)^(\s*)\[([\w -]*[^\x00-\x7f][\w -]*)\](?=\s*(?:#|$))"
"""Headings with names that TOML would take in quotes only, for letters beyond ASCII: they are taken without, too."""


def task_from(name: str, value: Mapping[str, Any]) -> Task:
    """A task from JSON or TOML: its attributes by name. Raises UserError that names what is wrong."""
    if not isinstance(value, Mapping):
        raise UserError(f"task {name}: expected its attributes")
    foreign = sorted(value.keys() - FIELDS.keys())
    if foreign:
        raise UserError(f"task {name}: no attribute {foreign[0]}; known: {', '.join(FIELDS)}")
    if not NAME.fullmatch(name) or name in RESERVED:
        raise UserError(f"task {name!r}: expected a name of letters, digits, _ and -, and none of {', '.join(RESERVED)}")
    try:
        task = Task(name, **{key: FIELDS[key](item) for key, item in value.items()})
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"task {name}: {error}") from None
    if len(set(task.classes)) < len(task.classes):
        twice = next(one for one in task.classes if task.classes.count(one) > 1)
        raise UserError(f"task {name}: two classes are called {twice!r}")
    task.of.check(task)
    return task


def task_to(task: Task) -> Json:
    """A task as JSON: what is not as usual of its attributes."""
    usual = Task("")
    value = {key: getattr(task, key) for key in FIELDS if getattr(task, key) != getattr(usual, key) or key in ("kind", "classes")}
    value["classes"] = list(task.classes)
    if not task.classes:
        del value["classes"]
    if "group" in value:
        value["group"] = list(task.group)
    if "synonyms" in value:
        value["synonyms"] = dict(task.synonyms)
    value.pop("ordinal", None)
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(f"{value!r}: expected a text")
    return value


def _names(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not all(isinstance(name, str | int | float) for name in value):
        raise ValueError(f"classes {value!r}: expected a list of names")
    names = tuple(unicodedata.normalize("NFC", str(name)).strip() for name in value)
    if not all(name and name.isprintable() for name in names):
        raise ValueError("a class has no name")
    return names


NAME = re.compile(r"\w[\w-]{0,99}")
RESERVED = ("id", "image", "person", "source", "split", "path", "features", "overall", "frame", "error", "status", "face", "score", "track")
"""Names of columns and keys beside the tasks'."""
FIELDS: Mapping[str, Callable[[Any], Any]] = {
    "kind": _text,
    "classes": _names,
    "ordinal": bool,
    "coarse": _text,
    "group": lambda value: tuple(map(int, value)),
    "synonyms": lambda value: tuple((_text(word), _text(name)) for word, name in dict(value).items()),
    "unit": _text,
    "within": float,
    "center": float,
    "scale": float,
    "column": _text,
}
"""What a task's description may hold, and how each is read."""
