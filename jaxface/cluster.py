"""Several processes that train one model: how they find each other, agree, and end when one of them dies."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from typing import Annotated, Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxface.errors import UserError
from jaxface.launchers import launched
from jaxface.ranges import Range, Word, ranged

T = TypeVar("T")

SILENCE = 30
"""Seconds without a sign of life after which a process counts as dead."""

PATIENCE = 5
"""Seconds between two signs of the first process that it is at work."""

PIECE = 2**26
"""Bytes that the first process tells the others at once."""

INDEXED_JOB = "JOB_COMPLETION_INDEX"
"""What Kubernetes tells the pods of an indexed Job alone; JAX asks its API for the rest (`pip install 'jax[k8s]'`)."""


def connect(options: ClusterOptions) -> None:
    """Joins the other processes: those of the options, or those that a launcher has started. Does nothing for one process alone.

    Raises UserError if they do not all come.
    """
    if jax.distributed.is_initialized() or not (options.coordinator or INDEXED_JOB in os.environ or launched(os.environ)):
        return
    if options.coordinator and not 0 <= options.process < options.processes:
        raise UserError(f"cluster.process {options.process}: expected 0 to {options.processes - 1}")
    chosen: dict[str, Any] = (
        {"coordinator_address": options.coordinator, "num_processes": options.processes, "process_id": options.process}
        if options.coordinator
        else {}
    )
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is the run's own: its handler would swallow it
    try:
        jax.distributed.initialize(**chosen, heartbeat_timeout_seconds=SILENCE)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes did not find each other: {str(error).splitlines()[0]}") from error


def is_first() -> bool:
    """Whether this is the process that writes and talks."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints a line, in the first process alone."""
    if is_first():
        print(text, file=sys.stderr, flush=True)


def from_first(value: Any) -> Any:
    """The first process's value, in every process; called by all of them together. What the others pass is not looked at."""
    if jax.process_count() == 1:
        return value
    data = np.frombuffer(pickle.dumps(value) if is_first() else b"", np.uint8)
    pieces, rest = map(int, multihost_utils.broadcast_one_to_all(np.array(divmod(data.size, PIECE), np.int32)))
    received = bytearray()
    for number in range(pieces + 1):  # a piece at a time: sizes are 32-bit numbers on the way, and a sum of bytes takes four times its size
        piece = data[number * PIECE : (number + 1) * PIECE] if is_first() else np.zeros(PIECE if number < pieces else rest, np.uint8)
        if piece.size:
            received += multihost_utils.broadcast_one_to_all(piece).astype(np.uint8).tobytes()
    return value if is_first() else pickle.loads(received)


def of_first(work: Callable[[], T]) -> T:
    """What the work gives in the first process, in every process; so with a UserError. Called by all of them together.

    However long it takes: while the first works, they tell each other so every few seconds, since an exchange waits half a minute at most.
    """
    if jax.process_count() == 1:
        return work()
    with ThreadPoolExecutor(1) as alone:
        future = alone.submit(work) if is_first() else None
        while from_first(future is not None and not wait([future], PATIENCE).done):
            pass
    error = from_first(None if future is None else future.exception())
    if error is not None:
        raise error
    return from_first(None if future is None else future.result())


@cache
def _maximum() -> Callable[[np.ndarray], jax.Array]:
    return jax.pmap(lambda x: jax.lax.pmax(x, "devices"), axis_name="devices")


def maximum(number: int) -> Callable[[], int]:
    """Starts to find the largest of all processes' numbers; the function that it returns waits for it."""
    result = _maximum()(np.full(jax.local_device_count(), number, np.int32))
    return lambda: int(np.asarray(result.addressable_data(0)).ravel()[0])


@contextmanager
def end_together() -> Iterator[None]:
    """Where another process is gone, ends this one at once, with one line and exit status 2: there is nobody to say goodbye to."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        first = str(error).splitlines()[0][:200]
        print(f"error: another process of this run is gone ({first}); start all of them again to go on", file=sys.stderr, flush=True)
        os._exit(2)


@ranged("cluster.")
class ClusterOptions:
    """Several processes that train one model; SLURM, Open MPI and Kubernetes tell theirs by themselves.

    Attributes:
      coordinator: address HOST:PORT of the first process.
      processes: how many there are.
      process: which one this is, from 0.
    """

    coordinator: Annotated[str | None, Word(r"[^\s/@]+:\d{1,5}", "HOST:PORT")] = None
    processes: Annotated[int, Range(1, 2**16)] = 1
    process: Annotated[int, Range(0, 2**16)] = 0
