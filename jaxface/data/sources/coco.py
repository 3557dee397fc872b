"""COCO's JSON (Lin et al. 2014): the categories in a picture as several labels, or each box as a picture of its category."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxface.data.cells import located, with_box
from jaxface.data.sources.base import Reading, Skipped, register_source
from jaxface.data.sources.json_files import find_image, json_files, split_in
from jaxface.data.sources.labelled import Columns, Labelled, Row
from jaxface.data.tasks import Task
from jaxface.errors import UserError


@register_source("coco")
class Coco(Labelled):
    """A file of `images`, `annotations` and `categories`, or a folder of them; their names say the split (instances_val2017.json)."""

    takes = ("straddling", "tasks_file", "columns", "label", "per")
    layout = "a COCO file (images, annotations, categories), or a folder with some"

    def rows(self, folder: Path, options: Reading, columns: Columns) -> Iterator[Row | Skipped]:
        for path, content in json_files(self.require(folder), dict, self.layout):
            try:
                categories = {key: str(entry["name"]) for key, entry in _by_id(path, content, "categories").items()}
                images = _by_id(path, content, "images")
                annotations: dict[Any, list[Any]] = {key: [] for key in images}
                for entry in content["annotations"]:
                    annotations[entry["image_id"]].append((categories[entry["category_id"]], entry.get("bbox")))
                names = tuple(dict.fromkeys(categories.values()))
                yield from self._of_file(path, images, annotations, names, options, columns)
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise UserError(f"{path}: not COCO's layout ({type(error).__name__}: {error})") from None

    def _of_file(
        self,
        path: Path,
        images: dict[Any, Any],
        annotations: dict[Any, list[Any]],
        names: tuple[str, ...],
        options: Reading,
        columns: Columns,
    ) -> Iterator[Row | Skipped]:
        kind = "multi-label" if options.per == "image" else "classification"
        earlier = columns.declared.get(options.label)
        classes = tuple(dict.fromkeys((*(earlier.classes if earlier else ()), *names)))
        columns.declared[options.label] = Task(options.label, classes, kind=kind)
        for key, image in images.items():
            name = str(image["file_name"])
            file = find_image(path.parent, located(path.parent, name, str(path)), name)
            split = split_in(path)
            if options.per == "image":
                yield Row(name, file, {options.label: [one for one, _ in annotations[key]]}, split, f"{path}: image {key}")
                continue
            for one, bbox in annotations[key]:
                if not bbox or len(bbox) != 4:
                    yield Skipped(name, "an annotation without a box")
                    continue
                box = (bbox[0], bbox[1], bbox[0] + bbox[2], bbox[1] + bbox[3])
                yield Row(with_box(name, box), file, {options.label: one}, split, f"{path}: image {key}", box)


def _by_id(path: Path, content: dict[str, Any], what: str) -> dict[Any, dict[str, Any]]:
    """The entries of a list by their ids. Raises UserError for two with one."""
    found: dict[Any, dict[str, Any]] = {}
    for entry in content[what]:
        if found.setdefault(entry["id"], entry) is not entry:
            raise UserError(f"{path}: two of its {what} have the id {entry['id']}: which one an annotation means cannot be told")
    return found
