"""What launchers tell the processes that they start, and which cores they leave them."""

from __future__ import annotations

import os
from collections.abc import Mapping

LAUNCHERS = {
    "SLURM_STEP_NUM_TASKS": "SLURM_PROCID",
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK",
    "JAX_NUM_PROCESSES": "JAX_PROCESS_ID",
}
"""Environment variables that say how many processes there are, and which one this is, from 0."""


def launched(environment: Mapping[str, str]) -> tuple[str, str] | None:
    """Which process this is and how many there are, as a launcher says; None for one process alone."""
    for size, rank in LAUNCHERS.items():
        if environment.get(size, "1") not in ("", "1"):
            return environment.get(rank, ""), environment[size]
    return None


def core_numbers() -> list[int]:
    """The cores that this process may use, by their numbers."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def cpu_count() -> int:
    """How many these are."""
    return len(core_numbers())
