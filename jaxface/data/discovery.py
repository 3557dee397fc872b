"""What a table's column is about: classes, labels, a number, or nothing to predict; and what in it deserves a second look."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from jaxface.data.kinds import Task
from jaxface.data.tables import SEPARATORS, number_of, parts_of, plain
from jaxface.data.task_files import NAME, RESERVED

FEW_NUMBERS = 20
"""Different whole numbers up to which a column is read as classes in an order."""
MOST_CLASSES = 10_000
FEW = 10
"""Records of a class below which it is named."""
LIKE, RARE = 0.75, 0.2
"""Likeness of two classes' names (of `difflib`), and how much rarer one is, from which on it is taken for a slip of the pen."""
UNIT = re.compile(r"\s*[(\[]\s*([^()\[\]]{1,20}?)\s*[)\]]\s*$")
WITH_UNIT = re.compile(r"([+-]?[\d.,]+)\s*([^\d\s.,+-][^\d]{0,9})")
Cell = str | list[str]


def discover(column: str, cells: Sequence[Cell]) -> Task | str:
    """The task of a column, from its cells that are not blank; or why it is none, in a few words."""
    name, unit = named(column)
    if name is None:
        return "its name cannot be a task's"
    about: dict[str, Any] = {"column": column} if name != column else {}
    if any(isinstance(cell, list) for cell in cells):
        return several(name, [cell if isinstance(cell, list) else [cell] for cell in cells], about)
    counts = Counter(unicodedata.normalize("NFC", str(cell)) for cell in cells)
    if len(counts) < 2:
        return "it is empty" if not counts else f"there is nothing but {next(iter(counts))!r} in it"
    common = {match[2] for match in map(WITH_UNIT.fullmatch, counts) if match}
    if len(common) == 1 and all(map(WITH_UNIT.fullmatch, counts)):
        unit = unit or common.pop()
        counts = Counter({value.removesuffix(unit).strip(): count for value, count in counts.items()})
    numbers = {value: number for value in counts if (number := number_of(value)) is not None}
    if len(numbers) == len(counts):
        return of_numbers(name, numbers, len(cells), unit, about)
    if parts := labels_in(list(counts)):
        return several(name, [parts[unicodedata.normalize("NFC", str(cell))] for cell in cells], about)
    if len(counts) > max(2, len(cells) / 2) or len(counts) > MOST_CLASSES:
        return f"{len(counts):,} different texts in {len(cells):,} rows"
    return Task(name, ordered(counts), **about)


def named(column: str) -> tuple[str | None, str]:
    """A task's name for a column, None where there is none, and the unit that stands in brackets behind it."""
    unit = UNIT.search(column)
    name = re.sub(r"[^\w-]+", "_", unicodedata.normalize("NFC", column[: unit.start()] if unit else column)).strip("_-")
    return (name if NAME.fullmatch(name) and plain(name) not in RESERVED else None), unit[1] if unit else ""


def of_numbers(name: str, numbers: Mapping[str, float], rows: int, unit: str, about: dict[str, Any]) -> Task:
    """A few whole numbers are classes in their order, two of them just classes; any others a number."""
    whole = all(number == int(number) and "." not in text and "," not in text for text, number in numbers.items())
    if whole and not unit and len(numbers) <= min(FEW_NUMBERS, rows / 2):
        classes = tuple(sorted(numbers, key=lambda text: numbers[text]))
        return Task(name, classes, kind="ordinal" if len(classes) > 2 else "classification", **about)
    return Task(name, kind="regression", unit=unit, **about)


def labels_in(cells: Sequence[str]) -> dict[str, list[str]]:
    """The labels in each cell, where cells are lists of them; nothing where they are names."""
    marked = any(mark in cell for cell in cells for mark in SEPARATORS)
    if not marked and not any("," in cell for cell in cells):
        return {}
    parts = {cell: parts_of(cell) for cell in cells}
    used = Counter(part for own in parts.values() for part in set(own))
    return parts if marked or (len(used) < len(cells) and max(used.values(), default=0) > 1) else {}


def several(name: str, cells: Sequence[list[str]], about: dict[str, Any]) -> Task | str:
    """Several labels at once."""
    labels = ordered(unicodedata.normalize("NFC", label) for cell in cells for label in cell)
    return Task(name, labels, kind="multi-label", **about) if labels else "there is no label in it"


def ordered(names: object) -> tuple[str, ...]:
    """Names as written, each once, in the order of the alphabet."""
    return tuple(sorted(set(names), key=lambda name: (name.casefold(), name)))  # ty: ignore[invalid-argument-type]


def doubts(task: Task, counts: Sequence[int]) -> list[str]:
    """What deserves a second look, a line each: likely typos, classes with few records, numbers that look like classes.

    Args:
      counts: records of each class.
    """
    if not task.classes:
        return []
    number = dict(zip(task.classes, counts, strict=True))
    lines = []
    if task.kind in ("classification", "ordinal") and len(task.values):
        lines.append('its classes are numbers; if it is a quantity, say kind = "regression" in a --tasks-file')
    elif typos := likely_typos(number):
        lines.append("likely typos: " + ", ".join(f"{a!r} ({number[a]}) for {b!r} ({number[b]})" for a, b in typos[:10]))
    few = [f"{name} {count}" for name, count in number.items() if count < FEW]
    if few and len(task.classes) <= 50:
        lines.append(f"fewer than {FEW} records: {', '.join(few)}")
    elif few:
        lines.append(f"fewer than {FEW} records in {len(few)} of {len(task.classes)} classes")
    return lines


def likely_typos(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """Classes that are written like a more usual one: the same but for case, blanks and hyphens, or much alike and much rarer."""
    found = []
    for rare, count in counts.items():
        others = {name: plain(name) for name, other in counts.items() if name != rare and (other, name) > (count, rare)}
        same = [name for name, word in others.items() if word == plain(rare)]
        usual = {others[name]: name for name in sorted(others, key=counts.__getitem__) if counts[name] * RARE >= count and len(name) > 3}
        near = get_close_matches(plain(rare), usual, 1, LIKE) if len(counts) <= 500 and count else []
        if same or near:
            found.append((rare, same[0] if same else usual[near[0]]))
    return found
