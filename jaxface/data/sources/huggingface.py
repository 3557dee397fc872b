"""Hugging Face `datasets`: a folder as `save_to_disk` writes it, or Parquet with embedded images, read without that library."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jaxface.data.cells import located
from jaxface.data.discovery import named
from jaxface.data.sources.base import Reading, Skipped, register_source
from jaxface.data.sources.json_files import split_in
from jaxface.data.sources.labelled import Columns, Labelled, Row
from jaxface.data.tasks import Task
from jaxface.errors import UserError
from jaxface.files import read_object

ROWS = 256
"""Rows that are read at a time."""


@register_source("huggingface")
class HuggingFace(Labelled):
    """Arrow and Parquet files with a column of images; class labels by their names. The split is a folder's or a file's name."""

    layout = "a folder of datasets.save_to_disk, or Parquet files (train-00000-of-00001.parquet) with a column of images"

    def rows(self, folder: Path, options: Reading, columns: Columns) -> Iterator[Row | Skipped]:
        files = [folder] if folder.is_file() else sorted({*folder.rglob("*.parquet"), *folder.rglob("*.arrow")})
        if not files:
            raise UserError(f"{folder} holds no record (no .parquet or .arrow file); it needs {self.layout}")
        for path in files:
            yield from of_pictures(path, columns, folder)


def of_pictures(path: Path, columns: Columns, folder: Path | None = None) -> Iterator[Row | Skipped]:
    """The rows of a Parquet or Arrow file with a column of images; those that it names by paths lie in the folder, or beside it."""
    try:
        schema, batches = opened(path)
        features = features_of(schema, path)
        image = next((name for name in schema.names if is_image(schema.field(name))), None)
        if image is None:
            raise UserError(f"{path}: no column of images (bytes); found {', '.join(schema.names)}")
        columns.declared |= declared(features)
        root, number = folder if folder is not None and folder.is_dir() else path.parent, 0
        for batch in batches:
            for values in batch.to_pylist():
                yield row_of(values, image, features, path, root, number)
                number += 1
    except (OSError, pa.ArrowException, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None


def row_of(values: dict[str, Any], image: str, features: dict[str, Any], path: Path, root: Path, number: int) -> Row | Skipped:
    """One row, its image as bytes or as a path."""
    picture = values.pop(image)
    where, name = f"{path}: row {number + 1}", f"{path.stem}/{number}"
    data = picture if isinstance(picture, bytes) else (picture or {}).get("bytes")
    file = None if isinstance(picture, bytes) else (picture or {}).get("path")
    if data is None and not file:
        return Skipped(name, "no image")
    cells = {key: cell for key, value in values.items() if (cell := cell_of(value, features.get(key))) not in (None, "")}
    return Row(name, data or located(root, str(file), where), cells, split_in(path), where)


def holds_images(path: Path) -> bool:
    """Whether a file is Parquet with a column of images."""
    if path.suffix.lower() not in (".parquet", ".pq") or not path.is_file():
        return False
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException):  # whoever reads it will say so
        return False
    return any(map(is_image, schema))


def opened(path: Path) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The schema and the batches of a Parquet file, or an Arrow file or stream."""
    if path.suffix != ".arrow":
        file = pq.ParquetFile(path)
        return file.schema_arrow, file.iter_batches(ROWS)
    try:
        stream: Any = pa.ipc.open_stream(pa.memory_map(str(path)))
        return stream.schema, iter(stream)
    except pa.ArrowInvalid:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        return reader.schema, (reader.get_batch(index) for index in range(reader.num_record_batches))


PICTURES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "image_bytes")
"""What a column of plain bytes is called where those are images."""


def is_image(field: pa.Field) -> bool:
    """Whether a column holds encoded images: `datasets`' pair of bytes and path, or bytes under a usual name."""
    kind = field.type
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)) and field.name.casefold() in PICTURES


def features_of(schema: pa.Schema, path: Path) -> dict[str, Any]:
    """What `datasets` says of the columns: in the schema, or in the folder's `dataset_info.json`; nothing where neither does."""
    told = (schema.metadata or {}).get(b"huggingface")
    if told:
        info = json.loads(told).get("info", {})
    else:
        info = read_object(path.parent / "dataset_info.json") if (path.parent / "dataset_info.json").is_file() else {}
    features = info.get("features") if isinstance(info, dict) else None
    return features if isinstance(features, dict) else {}


def class_names(feature: Any) -> tuple[list[str] | None, bool]:
    """The names of a class label or of a sequence of them, and whether it is such a sequence."""
    several = isinstance(feature, list) or (isinstance(feature, dict) and feature.get("_type") in ("Sequence", "List", "LargeList"))
    if several:
        feature = feature[0] if isinstance(feature, list) else feature.get("feature")
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    return (list(map(str, names)) if names else None), several


def declared(features: dict[str, Any]) -> dict[str, Task]:
    """The tasks of class labels, by column."""
    found = {}
    for column, feature in features.items():
        names, several = class_names(feature)
        name = named(column)[0]
        if names and name:
            found[column] = Task(name, tuple(names), kind="multi-label" if several else "classification")
    return found


def cell_of(value: Any, feature: Any) -> Any:
    """A value as a cell: a class label by its name, a missing one (null or -1) as None."""
    names, _ = class_names(feature)
    if isinstance(value, list):
        return [str(cell) for one in value if (cell := cell_of(one, feature)) is not None]
    if value is None or (names and value == -1) or value != value:
        return None
    return names[value] if names else re.sub(r"\.0$", "", str(value)) if isinstance(value, float) and abs(value) < 1e15 else str(value)
