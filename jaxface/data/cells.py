"""What a table's cells mean: labels, ages, face boxes, splits and paths."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxface.data.faces import Box
from jaxface.data.records import SPLITS
from jaxface.data.tables import plain
from jaxface.data.tasks import AGE, AGE_STARTS, AGE_YEARS, TASKS, age_group, age_labels
from jaxface.errors import UserError

SPLIT_NAMES = {"training": "train", "val": "validation", "valid": "validation", "testing": "test"}
YEARS = re.compile(r"(\d{1,3}(?:\.\d+)?)", re.ASCII)
RANGE = re.compile(r"[(\[]?\s*(\d{1,3}(?:\.\d+)?)\s*(?:-|\u2013|_|,|to)\s*(\d{1,3}(?:\.\d+)?)\s*[)\]]?", re.ASCII)
OPEN_RANGE = re.compile(r"(?:more than|over|>=?)\s*(\d{1,3})|(\d{1,3})\s*\+", re.ASCII)
Note = Callable[[str], None]


def inside(root: Path, name: str, where: str) -> Path:
    """The path of a file below `root`. Raises UserError for one that leads out of it."""
    path = os.path.normpath(name)
    if os.path.isabs(path) or path.split(os.sep)[0] == os.pardir:
        raise UserError(f"{where}: {name} lies outside {root}")
    return root / path


def located(root: Path, name: str, where: str) -> Path:
    """As `inside`, and an absolute path as it is: the table is the user's own."""
    return Path(name) if os.path.isabs(name) else inside(root, name, where)


def read_split(text: str, where: str) -> str:
    """A split by its name, or `training`, `val`, `valid`, `testing`. Raises UserError for anything else."""
    split = SPLIT_NAMES.get(text.casefold(), text.casefold())
    if split not in SPLITS:
        raise UserError(f"{where}: split {text!r}; known: {', '.join(SPLITS)}")
    return split


def read_labels(row: Mapping[str, str], tasks: Sequence[str], where: str, straddling: str = "refuse", note: Note | None = None) -> dict:
    """The classes of the tasks that the row has a cell for.

    Args:
      note: called with a class that has another name than the cell, `woman as female`.

    Raises UserError for a cell that is no class, and for an age and years of age that contradict each other.
    """
    found: dict[str, Any] = {}
    for task in (task for task in tasks if task in row):
        if task in (AGE.name, AGE_YEARS.name):
            labels = read_age(row[task], where, straddling)
        else:
            labels = {task: read_label(task, row[task], where, note)}
        for name, label in labels.items():
            if found.setdefault(name, label) != label:
                raise UserError(f"{where}: {AGE.name} {row[AGE.name]!r} and {AGE_YEARS.name} {row[AGE_YEARS.name]!r} contradict each other")
    return found


def read_label(task: str, text: str, where: str, note: Note | None = None) -> Any:
    """The label of a known task in a cell: a class by its name or a usual synonym, in any case. Raises UserError for anything else."""
    return TASKS[task].of.read(TASKS[task], text, where, note)


def read_age(text: str, where: str, straddling: str = "refuse") -> dict[str, int]:
    """The labels that an age gives: one of the groups by name, `34`, `34.5`, `30-34` or `30_34` years, `70+` or `more than 70`.

    A range over several groups is refused, counted by its middle or gives no label, as `straddling` says.
    """
    if text in AGE.classes:
        return {AGE.name: AGE.classes.index(text)}
    one, two, more = (pattern.fullmatch(text.casefold()) for pattern in (YEARS, RANGE, OPEN_RANGE))
    years = [float(part) for part in (one or two or more).groups() if part] if one or two or more else []
    if not years or years != sorted(years) or years[-1] >= 150:
        raise UserError(f"{where}: age {text!r} is out of range (years 0 to 149, or one of {', '.join(AGE.classes)})")
    if one:
        return age_labels(years[0])
    if more and years[0] >= AGE_STARTS[-1]:
        return {AGE.name: len(AGE_STARTS) - 1}
    groups = {age_group(year) for year in years}
    if len(groups) == 1 and not more:
        return {AGE.name: groups.pop()}
    if straddling == "refuse" or (more and straddling == "middle"):
        starts = ", ".join(map(str, AGE_STARTS))
        raise UserError(f"{where}: age {text!r} straddles two groups (they start at {starts}); see --read.straddling")
    return {AGE.name: age_group(sum(years) / 2)} if straddling == "middle" else {}


CORNERS, SIDES = "corners", "sides"
BOX_LAYOUTS = (
    (("x0", "y0", "x1", "y1"), CORNERS),
    (("x1", "y1", "x2", "y2"), CORNERS),
    (("x_min", "y_min", "x_max", "y_max"), CORNERS),
    (("xmin", "ymin", "xmax", "ymax"), CORNERS),
    (("left", "top", "right", "bottom"), CORNERS),
    (("x", "y", "w", "h"), SIDES),
    (("x", "y", "width", "height"), SIDES),
    (("left", "top", "width", "height"), SIDES),
)
"""The four columns of a face box, and whether the last two are the lower right corner or the sides' lengths."""
BOXES = ("box", "bbox", "face_box", "face_bbox", "bounding_box")
BOX_PREFIX = re.compile(r"(face_?)?(b?box|bounding_box)?_?")
ALONE = ("w", "h", "width", "height")
"""Not by themselves a box: an image has them, too."""


def box_columns(names: Sequence[str]) -> tuple[tuple[str, ...], str] | None:
    """Which of a table's columns are the face box, in the order of their layout, and which layout that is; None if there is none.

    Raises UserError if there is a part of a box, or more than one.
    """
    found: dict[str, dict[str, str]] = {}  # by what stands before it (`box_`), each part of a box and its column
    for name in names:
        if plain(name) in BOXES:
            raise UserError(f"column {name!r}: expected a face box as four columns x0, y0, x1, y1 (its corners) or x, y, w, h")
        for word in sorted({word for layout, _ in BOX_LAYOUTS for word in layout}):
            prefix = plain(name).removesuffix(word)
            if plain(name).endswith(word) and BOX_PREFIX.fullmatch(prefix):
                found.setdefault(prefix, {})[word] = name
    boxes = []
    for parts in found.values():
        whole = [(tuple(parts[word] for word in layout), kind) for layout, kind in BOX_LAYOUTS if set(layout) <= parts.keys()]
        left = [name for word, name in parts.items() if word not in ALONE and not (whole and name in whole[0][0])]
        if left:
            raise UserError(f"column {left[0]!r}: a face box is four columns x0, y0, x1, y1 (its corners) or x, y, w, h, and no others")
        boxes += whole[:1]
    if len(boxes) > 1:
        raise UserError(f"two face boxes, {', '.join(boxes[0][0])} and {', '.join(boxes[1][0])}: leave one")
    return boxes[0] if boxes else None


def read_box(row: Mapping[str, str], names: Sequence[str], where: str, kind: str = CORNERS) -> Box | None:
    """The box in the named cells, or None where all are blank. Raises UserError for three of four."""
    if not any(name in row for name in names):
        return None
    try:
        x0, y0, x1, y1 = (float(row[name]) for name in names)
    except (KeyError, ValueError) as error:
        raise UserError(f"{where}: the face box needs four numbers {', '.join(names)} ({error})") from None
    return (x0, y0, x0 + x1, y0 + y1) if kind == SIDES else (x0, y0, x1, y1)


def with_box(photo: str, box: Box | None) -> str:
    """The id of one face among a photo's."""
    return photo if box is None else f"{photo}@{','.join(f'{edge:g}' for edge in box)}"
