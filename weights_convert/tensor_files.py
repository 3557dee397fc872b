"""Files of tensors: safetensors and torch's zip format, read as views of the mapped file and written part by part."""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from jaxface.bounded import parse_json
from jaxface.digests import check_digest
from jaxface.errors import UserError
from jaxface.files import aside
from weights_convert import torch_format
from weights_convert.folders import INDEX, Told, shards, told_by, weight_file
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
      path: of the file, or of the index of several.
      tensors: views of the mapped file by name, in the file's order.
      metadata: what a safetensors file says beside its tensors.
      mapped: the mapped files; none where the tensors are in memory.
      taken: which of several sets of weights in the file it is, in words, or nothing.
      told: what the folder's configurations say of the model.
    """

    path: Path
    tensors: dict[str, np.ndarray]
    metadata: dict[str, str] = field(default_factory=dict)
    mapped: list[mmap.mmap] = field(default_factory=list)
    taken: str = ""
    told: Told = field(default_factory=Told)

    def release(self) -> None:
        """Lets go of the pages read so far; they are read again when needed."""
        for mapped in self.mapped if hasattr(mmap, "MADV_DONTNEED") else ():
            mapped.madvise(mmap.MADV_DONTNEED)


def open_tensors(path: str | Path, *, averaged: bool | None = None) -> TensorFile:
    """Opens a file of tensors, whatever its suffix; shards through their index; a folder as Hugging Face's libraries write one.

    Args:
      averaged: where a training checkpoint holds a moving average (EMA) of its weights: whether to take it; None takes it if it is there.

    Raises UserError if there is none, or it is broken, or it wants to run code.
    """
    path, told = Path(path), Told()
    if path.is_dir():
        path, told = weight_file(path), told_by(path)
    opened = _open_shards(path) if path.name.endswith(INDEX) else _open_file(path, averaged)
    opened.told = told
    for name in opened.tensors:
        if not name.isprintable() or len(name) > 300:
            raise UserError(f"{path}: a tensor's name is {name[:60]!r}: expected up to 300 characters that can be printed")
    return opened


def _open_shards(index: Path) -> TensorFile:
    """The tensors of all files that an index names. Raises UserError unless each holds what it is to hold, and nothing twice."""
    whole = TensorFile(index, {})
    for name, expected in shards(index).items():
        part = _open_file(index.parent / name, None)
        if part.tensors.keys() != set(expected):
            odd = min(part.tensors.keys() ^ set(expected))
            raise UserError(f"{index}: {odd[:80]} is {'not ' if odd in expected else ''}in {name}, against the index")
        whole.tensors |= part.tensors
        whole.mapped += part.mapped
    return whole


def _open_file(path: Path, averaged: bool | None) -> TensorFile:
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a checkpoint")
    check_digest(path)
    if path.stat().st_size < 8:
        raise UserError(f"{path}: {path.stat().st_size} bytes are no checkpoint")
    with path.open("rb") as file:
        start = file.read(9)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if start[:4] == b"PK\x03\x04":
        tensors, taken = torch_format.read_zip(path, mapped, averaged)
        return TensorFile(path, tensors, mapped=[mapped], taken=taken)
    if start[8:9] == b"{":
        if averaged:
            raise UserError(f"{path}: a safetensors file holds one set of weights, and none beside it that is averaged")
        tensors, metadata = _read_safetensors(path, mapped)
        return TensorFile(path, tensors, metadata, [mapped])
    if mapped[: len(torch_format.LEGACY)] == torch_format.LEGACY:
        tensors, taken = torch_format.read_legacy(path, mapped, averaged)
        return TensorFile(path, tensors, mapped=[mapped], taken=taken)
    hint = ": a pointer of Git LFS; fetch the file itself (git lfs pull)" if start == b"version h" else ""
    raise UserError(f"{path}: neither a safetensors file nor one of torch's checkpoints{hint}")


HEADER = 2**20
"""Bytes of a safetensors header that are read: some hundred a tensor."""


def _read_safetensors(path: Path, mapped: mmap.mmap) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    length = struct.unpack("<Q", mapped[:8])[0]
    if length + 8 > len(mapped):
        raise UserError(f"{path}: truncated: its header says {length} bytes, the file has {len(mapped)}")
    if length > HEADER:
        raise UserError(f"{path}: its safetensors header of {length:,} bytes is longer than that of any model ({HEADER:,})")
    try:
        header = parse_json(mapped[8 : 8 + length])
        metadata = header.pop("__metadata__", {})
        if odd := next((name for name, entry in header.items() if not isinstance(entry, dict)), None):
            raise ValueError(f"{odd[:80]!r} describes no tensor")
        entries = [_Entry(name, e["dtype"], e["shape"], *e["data_offsets"]) for name, e in header.items()]
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("its metadata is no texts")
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: its safetensors header is broken: {str(error)[:200]}") from None
    except KeyError as error:
        raise UserError(f"{path}: its safetensors header has a tensor without {error}") from None
    tensors: dict[str, np.ndarray] = {}
    at = 0
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.end)):
        tensors[entry.name] = entry.read(path, mapped, 8 + length, at)
        at = entry.end
    if 8 + length + at != len(mapped):
        raise UserError(f"{path}: its tensors end at byte {8 + length + at}, the file has {len(mapped)}: it is broken")
    return tensors, metadata


class _Entry:
    """One tensor as a safetensors header describes it. Raises ValueError for what describes none."""

    def __init__(self, name: str, dtype: Any, shape: Any, start: Any, end: Any) -> None:
        whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (*shape, start, end))
        if not isinstance(shape, list) or len(shape) > 32 or not whole:
            raise ValueError(f"tensor {name[:80]!r} has the shape {str(shape)[:60]} and the bytes {str(start)[:30]} to {str(end)[:30]}")
        if not isinstance(dtype, str) or dtype not in SAFETENSORS_DTYPES:
            raise ValueError(f"tensor {name[:80]!r} has the unknown data type {str(dtype)[:30]!r}")
        self.name, self.dtype, self.shape, self.start, self.end = name, SAFETENSORS_DTYPES[dtype], tuple(shape), start, end

    def read(self, path: Path, mapped: mmap.mmap, data: int, at: int) -> np.ndarray:
        """The tensor's view of a file whose data begin at a byte; the tensor before ends `at` bytes later."""
        count, size = math.prod(self.shape), self.end - self.start
        if size != count * self.dtype.itemsize:
            raise UserError(f"{path}: tensor {self.name[:80]} {list(self.shape)} cannot be {size} bytes: the file is broken")
        if self.start != at:
            raise UserError(f"{path}: tensor {self.name[:80]} starts at byte {self.start} of the data, the one before ends at {at}")
        if data + self.end > len(mapped):
            raise UserError(f"{path}: truncated: tensor {self.name[:80]} ends at byte {data + self.end}, the file has {len(mapped)}")
        return np.frombuffer(mapped, self.dtype, count, data + self.start).reshape(self.shape)


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
