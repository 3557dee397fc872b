"""What the checks of attention kernels and of the other operations' say alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

WIDTH = 150
"""Columns of a report."""


@dataclass(frozen=True)
class Verdicts:
    """What came of all cases of a kernel: a row for each of them and each dtype, and whether all hold."""

    kernel: str
    rows: tuple[Any, ...]

    @property
    def ok(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> tuple[Any, ...]:
        return tuple(row for row in self.rows if not row.ok)

    def count(self) -> str:
        """How many hold."""
        return f"{len(self.rows) - len(self.failures)} of {len(self.rows)} cases hold"


def as_text(table: Table) -> str:
    """A table as text, as wide as it is and without colours."""
    console = Console(width=WIDTH, no_color=True)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def named(kernel: Any, get: Callable[[str], Any]) -> tuple[str, Any]:
    """The name of a kernel, and the kernel, which `get` gives where it is told by its name. Raises UserError for an unknown one."""
    if isinstance(kernel, str):
        return kernel, get(kernel)
    return getattr(kernel, "__name__", type(kernel).__name__), kernel


def in_a_line(error: Exception) -> str:
    """An exception, whatever it is, for a table."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:120]


def relative_error(got: np.ndarray, expected: np.ndarray, size: float | None = None) -> float:
    """The largest difference over `size`, the largest value if None; infinite for what is not finite."""
    error = float(np.abs(got - expected).max() / (np.abs(expected).max() if size is None else size))
    return error if np.isfinite(error) else float("inf")
