"""Tensors as they are written, whatever the file's format: in parts, in C order, finite, converted."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from jaxface.errors import UserError

Parts = Mapping[str, list[np.ndarray]]
"""Tensors by name, each as the arrays that follow one another along its first axis."""


class NotFinite(UserError):
    """A tensor has NaN or infinity in it; `name` says which."""

    def __init__(self, name: str) -> None:
        super().__init__(f"tensor {name} has NaN or infinity in it")
        self.name = name


def joined_shape(parts: list[np.ndarray]) -> tuple[int, ...]:
    """The shape of the parts joined along the first axis."""
    first = parts[0].shape
    return (sum(part.shape[0] for part in parts), *first[1:]) if first else ()


def target_dtype(array: np.ndarray, dtype: DTypeLike | None) -> np.dtype:
    """What the array becomes: floating ones `dtype`, if it is given."""
    return np.dtype(dtype) if dtype is not None and is_floating(array.dtype) else array.dtype


def is_floating(dtype: np.dtype) -> bool:
    """Whether it is a floating type, bfloat16 included."""
    return dtype.kind == "f" or dtype == ml_dtypes.bfloat16


def as_bytes(name: str, array: np.ndarray, dtype: DTypeLike | None) -> memoryview:
    """The array's bytes in C order, converted. Raises NotFinite, and UserError for a value that the new type cannot hold."""
    array = contiguous(array)
    if not finite(array):
        raise NotFinite(name)
    with np.errstate(over="ignore"):  # an infinity is reported below
        converted = array.astype(target_dtype(array, dtype), copy=False)
    if converted is not array and not finite(converted):
        raise UserError(f"tensor {name} has values beyond the range of {converted.dtype}: take bfloat16 or float32")
    return converted.reshape(-1).view(np.uint8).data


def contiguous(array: np.ndarray) -> np.ndarray:
    """The array in C order, of any shape: matrices are transposed blockwise, ten times as fast as numpy does."""
    import cv2

    if array.ndim == 3 and len(array) == 1:
        array = array[0]
    kinds = {2: np.uint16, 4: np.int32, 8: np.float64}
    if array.flags.c_contiguous or array.ndim != 2 or not array.T.flags.c_contiguous or array.itemsize not in kinds:
        return np.ascontiguousarray(array)
    return cv2.transpose(array.T.view(kinds[array.itemsize])).view(array.dtype)


def finite(array: np.ndarray) -> bool:
    """Whether no value is NaN or infinite; one pass over the array in most cases."""
    if not is_floating(array.dtype):
        return True
    flat = array.reshape(-1)
    if array.dtype in (np.float32, np.float64):
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(np.dot(flat, flat)):
                return True
    wide = np.promote_types(array.dtype, np.float32)
    return all(np.isfinite(flat[i : i + 2**20].astype(wide, copy=False)).all() for i in range(0, flat.size, 2**20))


def some(what: str, items: list[str], most: int = 6) -> str:
    """ "2 tensors missing: a, b", the first few by name."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return f"{len(items)} tensor{'s' * (len(items) > 1)} {what}: {', '.join(item[:160] for item in items[:most])}{more}"
