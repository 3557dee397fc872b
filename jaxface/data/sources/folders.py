"""A folder of pictures per class, as torchvision's ImageFolder reads it, with folders of splits above them or without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jaxface.data.cells import SPLIT_NAMES
from jaxface.data.records import SPLITS
from jaxface.data.sources.base import Reading, Skipped, register_source
from jaxface.data.sources.labelled import IMAGES, Columns, Labelled, Row
from jaxface.data.tasks import Task
from jaxface.errors import UserError, printable


@register_source("folders")
class Folders(Labelled):
    """`Rose/1.jpg` or `train/Rose/1.jpg`: the classes are the folders' names, the task is called as `--label` says."""

    takes = ("straddling", "tasks_file", "columns", "label")
    layout = "a folder of pictures for each class (Rose/1.jpg), or such folders in train, val and test"

    def rows(self, folder: Path, options: Reading, columns: Columns) -> Iterator[Row | Skipped]:
        tops = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        split_of = {path: split for path in tops if (split := SPLIT_NAMES.get(path.name.casefold(), path.name.casefold())) in SPLITS}
        others = [path.name for path in tops if path not in split_of]
        if split_of and others:
            raise UserError(f"{folder}: folders of splits ({', '.join(p.name for p in split_of)}) beside others ({', '.join(others[:5])})")
        parts = split_of or {folder: "train"}
        classes = dict.fromkeys(path.name for part in parts for path in sorted(part.iterdir()) if path.is_dir() and path.name[0] != ".")
        if len(classes) < 2:
            raise UserError(f"{folder} holds no record (classes: {', '.join(classes) or 'none'}); it needs {self.layout}")
        columns.declared[options.label] = Task(options.label, tuple(sorted(classes, key=lambda name: (name.casefold(), name))))
        for part, split in parts.items():
            for path in sorted(path for path in part.rglob("*") if path.is_file()):
                name, inside = printable(str(path.relative_to(folder))), path.relative_to(part)
                if len(inside.parts) < 2 or inside.parts[0][0] == ".":
                    yield Skipped(name, "it is in no class's folder")
                elif path.suffix.lower() not in IMAGES:
                    yield Skipped(name, f"no picture ({path.suffix or 'no ending'})")
                else:
                    yield Row(name, path, {options.label: inside.parts[0]}, split, name)
