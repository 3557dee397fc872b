"""Label Studio's exports, JSON and JSON-MIN: choices, ratings, numbers and text boxes of a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxface.data.discovery import Cell
from jaxface.data.sources.base import Reading, Skipped, register_source
from jaxface.data.sources.json_files import file_in, find_image, json_files, split_in
from jaxface.data.sources.labelled import IMAGES, Columns, Labelled, Row
from jaxface.errors import UserError, printable

VALUES = ("choices", "taxonomy", "rating", "number", "text", "pairwise", "labels", "rectanglelabels")
"""Where a result has its value, by the kinds of control that say something of a whole picture."""
BESIDE = ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time")
"""Keys of JSON-MIN that are no labels."""


@register_source("label_studio")
class LabelStudio(Labelled):
    """A file of tasks, or a folder with some; a picture that lies at an address is looked for by its name beside the file."""

    layout = "an export of Label Studio (JSON or JSON-MIN), and the pictures beside it or in images/"

    def rows(self, folder: Path, options: Reading, columns: Columns) -> Iterator[Row | Skipped]:
        for path, content in json_files(self.require(folder), list, self.layout):
            for number, entry in enumerate(content):
                where = f"{path}: entry {number + 1}"
                if not isinstance(entry, dict):
                    raise UserError(f"{where}: expected {self.layout}")
                data = entry.get("data") if isinstance(entry.get("data"), dict) else entry
                address = next((text for text in data.values() if isinstance(text, str) and is_picture(text)), None)
                name = printable(address or str(number))
                if address is None:
                    yield Skipped(name, "no picture")
                elif "annotations" in entry and not (cells := cells_of(entry["annotations"], where)):
                    yield Skipped(name, "nobody has labelled it")
                else:
                    cells = cells if "annotations" in entry else plain_cells(entry, address)
                    files = [find_image(path.parent, path.parent / one, one) for one in file_in(address)]
                    image = next((file for file in files if file.exists()), files[0])
                    yield Row(name, image, cells, split_in(path), where)


def is_picture(text: str) -> bool:
    return any(Path(name).suffix.lower() in IMAGES for name in file_in(text))


def cells_of(annotations: Any, where: str) -> dict[str, Cell]:
    """The cells of the first annotation that was not cancelled, by the names of the controls."""
    cells: dict[str, Cell] = {}
    try:
        chosen = next((one for one in annotations if not one.get("was_cancelled")), {"result": []})
        for result in chosen["result"]:
            value = next((result["value"][key] for key in VALUES if key in result["value"]), None)
            if value is not None and result.get("from_name"):
                cells[str(result["from_name"])] = cell_of(value)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: not Label Studio's layout ({type(error).__name__}: {error})") from None
    return cells


def plain_cells(entry: dict[str, Any], address: str) -> dict[str, Cell]:
    """The cells of JSON-MIN, which has them by the controls' names."""
    return {key: cell_of(value) for key, value in entry.items() if key not in BESIDE and value != address and value not in (None, "", [])}


def cell_of(value: Any) -> Cell:
    """One value as a text, several as a list."""
    if isinstance(value, dict):
        value = value.get("choices", [])
    if isinstance(value, list):
        names = [" / ".join(map(str, one)) if isinstance(one, list) else str(one) for one in value]
        return names[0] if len(names) == 1 else names
    return f"{value:g}" if isinstance(value, float) else str(value)
