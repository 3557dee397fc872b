"""torch's checkpoint format without torch: a zip of a pickle, which names the tensors, and of their bytes.

A pickle is a program; this reader runs none. It knows how torch spells a tensor and refuses everything else (`torch_pickle`).
"""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from jaxface.errors import UserError
from weights_convert.tensor_parts import as_bytes, joined_shape, target_dtype
from weights_convert.torch_pickle import STORAGES, Unpickler, in_one_line

WRAPPERS = ("state_dict", "weights", "model", "model_state_dict", "module")
"""Keys under which checkpoints often hold the state dict."""
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
"""Keys under which training checkpoints hold a moving average of it."""

COUNTER = "n_averaged"
"""What torch's AveragedModel (SWA, EMA) has beside the average, all of which it calls `module`."""

PICKLE = 2 * 2**20
"""Bytes of a pickle that are read: some two hundred a tensor."""
DIRECTORY = 4 * 2**20
"""Bytes of a zip file's list of entries that are read: about a hundred a tensor."""


def read_zip(path: Path, mapped: mmap.mmap, averaged: bool | None = None) -> tuple[dict[str, np.ndarray], str]:
    """The tensors of a state dict in torch's zip format, as views of the mapped file, and which of several sets of weights it is.

    Dictionaries around it (`WRAPPERS`, `AVERAGED`) are opened; what is no tensor is left out.
    Raises UserError if the file is broken, larger inside than any model's, or if its pickle asks for anything but tensors.
    """
    if _directory_size(mapped) > DIRECTORY:
        raise UserError(f"{path}: its list of entries is longer than that of any model ({DIRECTORY:,} bytes)")
    with in_one_line(path), zipfile.ZipFile(path) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        if len(entries) < len(archive.infolist()):
            raise UserError(f"{path}: broken: an entry stands in it twice")
        pickles = [name for name in entries if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError(f"{path}: a zip file, but not one of torch's checkpoints (no data.pkl in it)")
        folder = pickles[0].removesuffix("data.pkl")
        for name in (pickles[0], f"{folder}byteorder"):
            if name in entries and entries[name].file_size > PICKLE:
                size = entries[name].file_size
                raise UserError(f"{path}: its entry {name[:80]} of {size:,} bytes is longer than that of any model ({PICKLE:,})")
        if f"{folder}byteorder" in entries and archive.read(f"{folder}byteorder") != b"little":
            raise UserError(f"{path}: written on a big-endian machine, which this reader does not know")
        with archive.open(pickles[0]) as file:
            value = Unpickler(file, lambda key, *wanted: _storage(path, mapped, entries, f"{folder}data/{key}", *wanted)).load()
    return tensors_in(path, value, averaged)


def _directory_size(mapped: mmap.mmap) -> int:
    """Bytes of a zip file's list of entries, or 0 where its end is missing, which the reader will say."""
    end = mapped.rfind(b"PK\x05\x06", max(0, len(mapped) - 66_000))
    if end < 0 or end + 16 > len(mapped):
        return 0
    size = struct.unpack_from("<I", mapped, end + 12)[0]
    wide = mapped.rfind(b"PK\x06\x06", max(0, end - 4096), end)
    return struct.unpack_from("<Q", mapped, wide + 40)[0] if size == 2**32 - 1 and 0 <= wide <= end - 48 else size


def _storage(path: Path, mapped: mmap.mmap, entries: Mapping[str, zipfile.ZipInfo], name: str, dtype: np.dtype, count: int) -> np.ndarray:
    """The bytes of one of the zip's entries, in place."""
    info = entries.get(name)
    if info is None:
        raise UserError(f"{path}: broken: its entry {name} is missing")
    if info.compress_type != zipfile.ZIP_STORED:
        raise UserError(f"{path}: its tensors are compressed, which torch never does: save it again")
    name_length, extra_length = struct.unpack_from("<HH", mapped, info.header_offset + 26)
    start = info.header_offset + 30 + name_length + extra_length
    if count < 0 or count * dtype.itemsize > info.file_size or start + info.file_size > len(mapped):
        raise UserError(f"{path}: truncated: entry {name} has {info.file_size} bytes, {count * dtype.itemsize} are asked for")
    return np.frombuffer(mapped, dtype, count, start)


def tensors_in(path: Path, value: Any, averaged: bool | None = None) -> tuple[dict[str, np.ndarray], str]:
    """The tensors of a state dict, out of the dictionaries that often stand around one, and which of several it is, in words.

    Raises UserError if it is none, or if it cannot be told which one is meant.
    """
    taken = ""
    for _ in range(4):  # a pickle's dictionary may hold itself
        plain, means = (
            [key for key in keys if isinstance(value, dict) and _holds_tensors(value.get(key))] for keys in (WRAPPERS, AVERAGED)
        )
        if len(plain) > 1 or len(means) > 1:
            raise UserError(
                f"{path}: holds several state dicts ({', '.join(plain if len(plain) > 1 else means)}): save the one meant alone"
            )
        chosen = means or plain if averaged is None else means if averaged else plain
        if (plain or means) and not chosen:
            kind = "an averaged one" if averaged else "one that is not averaged"
            raise UserError(f"{path}: holds {', '.join(plain + means)}, not {kind}")
        if not chosen:
            break
        useless = [key for key in AVERAGED if averaged is None and key in value and key not in means]
        value = value[chosen[0]]
        if useless and not means:
            taken = f"{chosen[0]} is taken; {useless[0]} beside it is no dictionary of tensors"
        if means:
            others = [key for key in plain + means if key != chosen[0]]
            taken = f"{chosen[0]} is taken" + (f", not {others[0]}" if others else " (an average of the weights)")
    if not isinstance(value, dict):
        kind = "tensor" if isinstance(value, np.ndarray) else type(value).__name__.replace("Inert", "value")
        raise UserError(f"{path}: holds a {kind}, expected a dictionary of tensors")
    tensors = {str(name): array for name, array in value.items() if isinstance(array, np.ndarray)}
    if COUNTER in tensors and all(name.startswith("module.") for name in tensors if name != COUNTER):
        del tensors[COUNTER]
        taken = taken or "its average of the weights is taken (torch's AveragedModel), which is all that it holds"
        if averaged is False:
            raise UserError(f"{path}: holds averaged weights alone (torch's AveragedModel)")
    if averaged and not taken:
        raise UserError(f"{path}: holds no averaged weights ({', '.join(AVERAGED)})")
    if value and not tensors:
        keys = ", ".join(str(key)[:60] for key in list(value)[:6])
        raise UserError(f"{path}: holds {keys}, and no tensor of torch's under its own name: save the state dict alone")
    return tensors, taken


def _holds_tensors(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return any(isinstance(item, np.ndarray) or (isinstance(item, dict) and key in WRAPPERS) for key, item in value.items())


LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")
"""How a file from before torch 1.6 begins: a pickle of torch's magic number."""


def read_legacy(path: Path, mapped: mmap.mmap, averaged: bool | None = None) -> tuple[dict[str, np.ndarray], str]:
    """The tensors of a file from before torch 1.6: pickles one after another, then every storage, its length in front. As `read_zip`."""
    wanted: dict[str, tuple[np.dtype, int]] = {}
    places: dict[str, np.ndarray] = {}

    def storage(key: str, dtype: np.dtype, count: int) -> np.ndarray:
        wanted[key] = (dtype, count)
        return places[key] if places else np.broadcast_to(np.zeros((), dtype), max(count, 0))

    def value_at(start: int) -> tuple[Any, int]:
        file = io.BytesIO(mapped[start : start + PICKLE])
        return Unpickler(file, storage).load(), start + file.tell()

    with in_one_line(path):
        at = len(LEGACY) + 1  # the magic number and its full stop
        for _ in ("protocol", "machine"):
            _, at = value_at(at)
        start = at
        _, at = value_at(start)
        keys, at = value_at(at)
        for key in keys:
            dtype, count = wanted[key]
            if struct.unpack_from("<q", mapped, at)[0] != count or count < 0 or at + 8 + count * dtype.itemsize > len(mapped):
                raise UserError(f"{path}: truncated or broken: its storage {str(key)[:60]} is not the {count} numbers that it is to be")
            places[key] = np.frombuffer(mapped, dtype, count, at + 8)
            at += 8 + count * dtype.itemsize
        value = value_at(start)[0] if places else {}
    return tensors_in(path, value, averaged)


class _Entry(NamedTuple):
    key: int
    dtype: np.dtype
    shape: tuple[int, ...]


def write_zip(
    file: BinaryIO,
    tensors: Mapping[str, list[np.ndarray]],
    dtype: DTypeLike | None,
    metadata: Mapping[str, str],
    written: Callable[[int], None],
) -> None:
    """Writes a state dict as `torch.save` does, part by part: an ordered dictionary of contiguous tensors, and no metadata."""
    entries = {name: _Entry(key, target_dtype(parts[0], dtype), joined_shape(parts)) for key, (name, parts) in enumerate(tensors.items())}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_aligned("archive/data.pkl", 0), _pickle(entries))
        archive.writestr(_aligned("archive/byteorder", file.tell()), "little")
        for key, (name, parts) in enumerate(tensors.items()):
            with archive.open(_aligned(f"archive/data/{key}", file.tell()), "w", force_zip64=True) as data:
                for part in parts:
                    data.write(as_bytes(name, part, dtype))
                    written(part.nbytes)
        archive.writestr(_aligned("archive/version", file.tell()), "3\n")


def _aligned(name: str, position: int) -> zipfile.ZipInfo:
    """An entry without a time, whose data begin at a multiple of 64 bytes if `open` with `force_zip64` writes it."""
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    zip64 = 20  # bytes that `zipfile` puts before the padding when sizes may exceed 4 GB
    padding = -(position + 30 + len(name) + zip64 + 4) % 64
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    return info


def _pickle(entries: Mapping[str, _Entry]) -> bytes:
    """The pickle of a state dict, spelled out in opcodes, since pickling torch's names takes torch."""
    storages = {dtype: name for name, dtype in STORAGES.items()}
    code = [b"\x80\x02ccollections\nOrderedDict\n)R("]
    for name, entry in entries.items():
        code.append(_text(name))
        code.append(b"ctorch._utils\n_rebuild_tensor_v2\n(")
        code.append(b"(" + _text("storage") + f"ctorch\n{storages[entry.dtype]}\n".encode() + _text(str(entry.key)) + _text("cpu"))
        code.append(_integer(int(np.prod(entry.shape, dtype=np.int64))) + b"tQ")  # tuple, persistent id
        strides = [int(np.prod(entry.shape[i + 1 :], dtype=np.int64)) for i in range(len(entry.shape))]
        code.append(_integer(0) + _integers(entry.shape) + _integers(strides) + b"\x89ccollections\nOrderedDict\n)RtR")
    return b"".join([*code, b"u."])


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value) if value < 2**31 else b"\x8a\x08" + struct.pack("<q", value)


def _integers(values: tuple[int, ...] | list[int]) -> bytes:
    return b"(" + b"".join(map(_integer, values)) + b"t"
