"""Several processes that train one model: how they find each other, and how they end when one of them dies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from jaxface.config import ClusterOptions
from jaxface.errors import UserError

SILENCE = 30
"""Seconds without a sign of life after which a process counts as dead."""

LAUNCHERS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "JAX_NUM_PROCESSES")
"""Environment variables in which launchers say how many processes there are."""


def connect(options: ClusterOptions) -> None:
    """Joins the other processes: those of the options, or those that a launcher has started. Does nothing for one process alone.

    Raises UserError if they do not all come.
    """
    launched = any(os.environ.get(name, "1") not in ("", "1") for name in LAUNCHERS)
    if jax.distributed.is_initialized() or not (options.coordinator or launched):
        return
    if options.coordinator and not 0 <= options.process < options.processes:
        raise UserError(f"cluster.process {options.process}: expected 0 to {options.processes - 1}")
    chosen = (
        {"coordinator_address": options.coordinator, "num_processes": options.processes, "process_id": options.process}
        if options.coordinator
        else {}
    )
    try:
        jax.distributed.initialize(**chosen, heartbeat_timeout_seconds=SILENCE)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes did not find each other: {str(error).splitlines()[0]}") from error


@contextmanager
def end_together() -> Iterator[None]:
    """Where another process is gone, ends this one at once, with one line and exit status 2: there is nobody to say goodbye to."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        first = str(error).splitlines()[0][:200]
        print(f"error: another process of this run is gone ({first}); start all of them again to go on", flush=True)
        os._exit(2)
