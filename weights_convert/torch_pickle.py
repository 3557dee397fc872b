"""What a pickle of torch's may ask for: tensors, and what often stands beside them. It is a program; nothing of it is run."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar

import ml_dtypes
import numpy as np

from jaxface.errors import UserError

STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}

BROKEN = (
    pickle.UnpicklingError,
    struct.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a damaged pickle makes the standard library raise."""

NESTED = 100
"""How deep values of a pickle may stand in one another."""


class Refused(Exception):
    """The pickle names something that is no part of a tensor."""


def _tensor(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> np.ndarray:
    """What `torch._utils._rebuild_tensor_v2` makes: a strided view of a storage."""
    if offset < 0 or len(size) != len(stride) or min((*size, *stride, 0)) < 0:
        raise Refused(f"a tensor of size {size} and stride {stride}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if all(size) and last >= storage.size:
        raise Refused(f"a tensor that ends at element {last} of a storage of {storage.size}")
    steps = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)


def _parameter(data: np.ndarray, *_: Any) -> np.ndarray:
    return data


class Inert:
    """What stands for a value that is no part of the weights: it takes whatever a pickle gives it, and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...

    def add(self, value: Any) -> None: ...


INERT = (
    *(("argparse", "Namespace"), ("types", "SimpleNamespace"), ("collections", "defaultdict"), ("collections", "Counter")),
    *((module, name) for module in ("numpy.core.multiarray", "numpy._core.multiarray") for name in ("scalar", "_reconstruct")),
    *(("numpy", "dtype"), ("numpy", "ndarray"), ("torch", "device"), ("torch.serialization", "_get_layout"), ("_codecs", "encode")),
    *(("pathlib", name) for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath")),
    *(("datetime", name) for name in ("datetime", "timedelta", "date")),
    *(
        ("builtins", name)
        for name in ("set", "frozenset", "complex", "slice", "range", "bytearray", "dict", "list", "int", "float", "bool")
    ),
)
"""Names of what often stands beside weights (arguments, the best metric, the date): read as nothing."""

ALLOWED: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): tuple,
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
    **{("torch", name): name for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")},
    **dict.fromkeys(INERT, Inert),
}


_Python: Any = pickle._Unpickler


class Unpickler(_Python):
    """The Python form of the unpickler: the C form allocates a table as long as any index that a damaged file names."""

    def __init__(self, file: IO[bytes], storage: Callable[[str, np.dtype, int], np.ndarray]) -> None:
        super().__init__(file)
        self.storage = storage

    def load_mark(self) -> None:
        if len(self.metastack) > NESTED:
            raise Refused(f"values nested more than {NESTED} deep")
        super().load_mark()

    dispatch: ClassVar = _Python.dispatch | {pickle.MARK[0]: load_mark}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise Refused(f"{module}.{name}")
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        match pid:
            case ("storage", np.dtype() as dtype, str() as key, _, int() as count, *rest) if rest in ([], [None]):  # None: no view
                return self.storage(key, dtype, count)
        raise Refused(f"an object {str(pid)[:60]}")


@contextmanager
def in_one_line(path: Path) -> Iterator[None]:
    """Makes one line of whatever a damaged file, or one that asks for more than tensors, has the standard library raise."""
    try:
        yield
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: truncated or broken: {_line(error)}") from None
    except Refused as error:
        raise UserError(
            f"{path}: refused: its pickle asks for {_line(error)}, which makes no plain tensor; save the state dict alone"
        ) from None
    except BROKEN as error:
        raise UserError(f"{path}: its pickle is broken: {type(error).__name__}: {_line(error)}") from None


def _line(error: Exception) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(error))[:200]
