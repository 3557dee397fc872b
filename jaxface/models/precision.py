"""What a model computes in, by name."""

from __future__ import annotations

from typing import NamedTuple

import ml_dtypes
import numpy as np

from jaxface.registry import Registry

AUTO = "auto"
"""bf16 on accelerators, fp32 on CPUs."""


class Precision(NamedTuple):
    """Dtypes of a model.

    Attributes:
      dtype: of activations and frozen kernels.
      residual: of the sum that goes from block to block; None for `dtype`.
    """

    dtype: np.dtype
    residual: np.dtype | None = None


FLOAT32, BFLOAT16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)
PRECISIONS: Registry[Precision] = Registry(
    "precision",
    {"fp32": Precision(FLOAT32), "bf16": Precision(BFLOAT16), "mixed": Precision(BFLOAT16, FLOAT32)},
    others=AUTO,
)
"""mixed: what is multiplied is bf16 and what is added up is float32, as under torch.autocast."""


def resolved(name: str) -> str:
    """The name of an entry of `PRECISIONS`: `AUTO` says which suits this device."""
    if name != AUTO:
        return name
    import jax  # slow to import: not for --help

    return "fp32" if jax.default_backend() == "cpu" else "bf16"


def precision_of(name: str) -> Precision:
    """The entry of that name, or the one that suits this device. Raises UserError for an unknown name."""
    return PRECISIONS.get(resolved(name))
