"""Who writes the shards: processes of this machine, or an engine of several machines that share the folders.

An engine is a function registered by name: it has `write_shard` called for every shard, somewhere, and calls `done` here for each.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from pathlib import Path

import cv2

from jaxface.data.shards import Shard, write_shard
from jaxface.errors import UserError
from jaxface.imports import import_files, imported_files
from jaxface.registry import Registry

Engine = Callable[[Sequence[Shard], int, Callable[[Shard], None]], None]

ENGINES: Registry[Engine] = Registry("engine")
register_engine, get_engine = ENGINES.register, ENGINES.get

WORTH_A_PROCESS = 256
"""Records below which starting another process costs more than it saves."""


@register_engine("local")
def local(shards: Sequence[Shard], workers: int, done: Callable[[Shard], None]) -> None:
    """Processes of this machine; `workers` 0 takes one a core, as far as the work is worth it."""
    count = sum(len(shard.records) for shard in shards)
    workers = min(workers or min(os.cpu_count() or 1, count // WORTH_A_PROCESS), len(shards))
    if workers < 2:
        for shard in shards:
            write_shard(shard)
            done(shard)
        return
    # spawned: the parent may hold threads of JAX by now
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start, initargs=(imported_files(),)) as pool:
        futures = {pool.submit(write_shard, shard): shard for shard in shards}
        try:
            for future in as_completed(futures):
                future.result()
                done(futures[future])
        except BrokenProcessPool:
            raise UserError("a worker process died (killed, or out of memory): run the same command again, with fewer --workers") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _start(files: Sequence[Path]) -> None:
    """A worker runs the user's files, uses one core, leaves Ctrl-C to its parent, and ends when that does, even by `kill -9`."""
    import_files(files)
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sentinel = parent_process().sentinel
    threading.Thread(target=lambda: connection.wait([sentinel]) and os._exit(1), daemon=True).start()


@register_engine("ray")
def on_ray(shards: Sequence[Shard], workers: int, done: Callable[[Shard], None]) -> None:
    """Ray tasks (the extra `ray`): on this machine, or on the cluster that RAY_ADDRESS names, which must see the same folders.

    A shard whose machine is lost is written again elsewhere; `workers` is how many are written at once here, 0 for one a core.
    Apache Beam's direct runner wrote the same bytes, but tells of nothing before the end and asks for older protobuf, Arrow and Pillow.
    """
    try:
        import ray
    except ImportError:
        raise UserError("engine ray needs the extra `ray`: pip install 'jaxface[ray]'") from None
    here = "RAY_ADDRESS" not in os.environ
    ray.init(num_cpus=workers or None if here else None, include_dashboard=False if here else None, log_to_driver=False)
    try:
        task, files = ray.remote(max_retries=3)(_write), imported_files()
        waiting = {task.remote(shard, files): shard for shard in shards}
        while waiting:
            finished, _ = ray.wait(list(waiting))
            for reference in finished:
                ray.get(reference)
                done(waiting.pop(reference))
    finally:
        ray.shutdown()


def _write(shard: Shard, files: Sequence[Path]) -> None:
    """`write_shard` in a process that may not know the user's files yet; they lie in the folders that the machines share."""
    import_files(files)
    write_shard(shard)
