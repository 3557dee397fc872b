"""Files of tensors: safetensors and torch's zip format, read as views of the mapped file and written part by part."""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from jaxface.digests import check_digest
from jaxface.errors import UserError
from jaxface.files import aside
from weights_convert import torch_format
from weights_convert.tensor_parts import Parts, as_bytes, joined_shape, target_dtype

SAFETENSORS_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


@dataclass
class TensorFile:
    """An opened file.

    Attributes:
      path: of the file.
      tensors: views of the mapped file by name, in the file's order.
      metadata: what a safetensors file says beside its tensors.
      mapped: the mapped file, or None where the tensors are in memory.
    """

    path: Path
    tensors: dict[str, np.ndarray]
    metadata: dict[str, str] = field(default_factory=dict)
    mapped: mmap.mmap | None = None

    def release(self) -> None:
        """Lets go of the pages read so far; they are read again when needed."""
        if self.mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            self.mapped.madvise(mmap.MADV_DONTNEED)


def open_tensors(path: str | Path) -> TensorFile:
    """Opens a file of tensors, whatever its suffix. Raises UserError if there is none, or it is broken, or it wants to run code."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}; expected a checkpoint")
    check_digest(path)
    if path.stat().st_size < 8:
        raise UserError(f"{path}: {path.stat().st_size} bytes are no checkpoint")
    with path.open("rb") as file:
        start = file.read(9)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if start[:4] == b"PK\x03\x04":
        return TensorFile(path, torch_format.read_zip(path, mapped), mapped=mapped)
    if start[8:9] == b"{":
        tensors, metadata = _read_safetensors(path, mapped)
        return TensorFile(path, tensors, metadata, mapped)
    return TensorFile(path, torch_format.read_legacy(path))


def _read_safetensors(path: Path, mapped: mmap.mmap) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    length = struct.unpack("<Q", mapped[:8])[0]
    if length + 8 > len(mapped):
        raise UserError(f"{path}: truncated: its header says {length} bytes, the file has {len(mapped)}")
    try:
        header = json.loads(mapped[8 : 8 + length])
        metadata = header.pop("__metadata__", {})
        entries = {name: (SAFETENSORS_DTYPES[e["dtype"]], tuple(e["shape"]), *e["data_offsets"]) for name, e in header.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: its safetensors header is broken: {error}") from None
    except KeyError as error:
        raise UserError(f"{path}: its safetensors header has the unknown entry or data type {error}") from None
    tensors = {}
    for name, (dtype, shape, start, end) in sorted(entries.items(), key=lambda entry: entry[1][2]):
        count = int(np.prod(shape, dtype=np.int64))
        if start < 0 or end - start != count * dtype.itemsize:
            raise UserError(f"{path}: tensor {name} {list(shape)} cannot be {end - start} bytes: the file is broken")
        if 8 + length + end > len(mapped):
            raise UserError(f"{path}: truncated: tensor {name} ends at byte {8 + length + end}, the file has {len(mapped)}")
        tensors[name] = np.frombuffer(mapped, dtype, count, 8 + length + start).reshape(shape)
    return tensors, metadata


def write_tensors(
    path: str | Path,
    tensors: Parts,
    *,
    dtype: DTypeLike | None = None,
    metadata: Mapping[str, str] | None = None,
    written: Callable[[int], None] = lambda count: None,
) -> None:
    """Writes tensors to a `.safetensors` file or to one in torch's format (`.pt`, `.pth`, `.bin`), aside and then renamed.

    Args:
      path: the suffix decides the format.
      tensors: see `Parts`; each part is made contiguous, checked and written before the next is touched.
      dtype: of floating tensors; None keeps each as it is.
      metadata: for safetensors.
      written: told the size of each part, in bytes of the source.

    Raises UserError if the suffix is another, NotFinite at the first tensor with NaN or infinity in it.
    """
    path = Path(path)
    writers = {".safetensors": _write_safetensors, **dict.fromkeys((".pt", ".pth", ".bin"), torch_format.write_zip)}
    if path.suffix not in writers:
        raise UserError(f"{path}: the suffix says the format: one of {', '.join(writers)}")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: no such folder to write into")
    with aside(path) as temporary, temporary.open("wb") as file:
        writers[path.suffix](file, tensors, dtype, metadata or {}, written)


def _write_safetensors(
    file: BinaryIO, tensors: Parts, dtype: DTypeLike | None, metadata: Mapping[str, str], written: Callable[[int], None]
) -> None:
    names = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, parts in tensors.items():
        kind = target_dtype(parts[0], dtype)
        end = offset + kind.itemsize * sum(part.size for part in parts)
        header[name] = {"dtype": names[kind], "shape": joined_shape(parts), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for name, parts in tensors.items():
        for part in parts:
            file.write(as_bytes(name, part, dtype))
            written(part.nbytes)
