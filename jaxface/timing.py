"""Timing on machines that are never quite idle: cases take turns, and medians and ratios are what counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import jax

from jaxface.errors import UserError

K = TypeVar("K")


def interleaved(cases: Mapping[K, Callable[[], Any]], rounds: int = 10, warm: int = 1) -> dict[K, list[float]]:
    """Seconds of every call: each round calls every case once, after `warm` rounds that do not count.

    A case that returns jax arrays is timed until they are computed.
    """
    seconds: dict[K, list[float]] = {name: [] for name in cases}
    for index in range(warm + rounds):
        for name, case in cases.items():
            start = time.perf_counter()
            jax.block_until_ready(case())
            if index >= warm:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def medians(seconds: Mapping[K, list[float]]) -> dict[K, float]:
    """The median of each case, in seconds."""
    return {name: median(values) for name, values in seconds.items()}


def require_trace_folder(path: Path | None) -> None:
    """Raises UserError if a profiler cannot write below the path."""
    if path is not None and path.exists() and not path.is_dir():
        raise UserError(f"trace {path}: a file; expected a folder, or a name for a new one")
