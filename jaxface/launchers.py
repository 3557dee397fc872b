"""What launchers tell the processes that they start."""

from __future__ import annotations

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
