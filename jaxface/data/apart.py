"""Decoding in a process of its own, which is killed when it takes too long and cannot take more memory than it may.

Here is the end that asks; `jaxface.data.decoder_process` is the one that answers.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

import numpy as np

from jaxface.data.formats import Bounds, Decoded
from jaxface.data.headers import TooLarge, Unreadable
from jaxface.data.videos import End, Frame

START_SECONDS = 60.0
"""For the process to start, on a machine that is busy."""
Json = dict[str, Any]


class Worker:
    """The parent's end of a decoding process."""

    def __init__(self, nice: int) -> None:
        self.nice = nice
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-P", "-m", "jaxface.data.decoder_process"]  # -P: no module of the folder that it is started in
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0, env=environment
        )
        if nice:
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, self._process.pid, os.getpriority(os.PRIO_PROCESS, 0) + nice)
        _running.add(self)
        os.set_blocking(self._process.stdin.fileno(), False)
        self._left = b""
        self._line(time.monotonic() + START_SECONDS)

    def ask(self, request: Json, data: bytes, seconds: float) -> tuple[Json, bytearray]:
        """An answer and its bytes. Raises Unreadable after so many seconds, or if the process dies; it is gone then."""
        deadline = time.monotonic() + seconds
        with self._or_gone(seconds):
            self._send(json.dumps(request | {"bytes": len(data)}).encode() + b"\n", deadline)
            self._send(data, deadline)
        return self.next(seconds)

    def next(self, seconds: float) -> tuple[Json, bytearray]:
        """A further answer to the same request, as `ask`."""
        deadline = time.monotonic() + seconds
        with self._or_gone(seconds):
            answer = json.loads(self._line(deadline))
            return answer, self._take(answer.get("bytes", 0), deadline)

    @contextmanager
    def _or_gone(self, seconds: float) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            self.kill()
            raise Unreadable(f"decoding takes longer than {seconds:g} s") from None
        except (OSError, EOFError):
            self.kill()
            raise Unreadable(f"its decoder broke down (status {self._process.returncode})") from None

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """Ends the process, whatever it does, and lets go of it."""
        _running.discard(self)
        self.stop()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def stop(self) -> None:
        """Ends the process, from any thread."""
        self._process.kill()

    def _send(self, data: bytes, deadline: float) -> None:
        view, pipe = memoryview(data), self._process.stdin.fileno()
        while len(view):
            _, ready, _ = select.select([], [pipe], [], max(deadline - time.monotonic(), 0))
            if not ready:
                raise TimeoutError
            view = view[os.write(pipe, view[: 1 << 20]) :]

    def _read(self, most: int, deadline: float) -> bytes:
        pipe = self._process.stdout.fileno()
        ready, _, _ = select.select([pipe], [], [], max(deadline - time.monotonic(), 0))
        if not ready:
            raise TimeoutError
        data = os.read(pipe, most)
        if not data:
            raise EOFError
        return data

    def _line(self, deadline: float) -> bytes:
        while b"\n" not in self._left:
            self._left += self._read(1 << 16, deadline)
        line, _, self._left = self._left.partition(b"\n")
        return line

    def _take(self, count: int, deadline: float) -> bytearray:
        taken = bytearray(self._left[:count])
        self._left = self._left[count:]
        while len(taken) < count:
            taken += self._read(min(count - len(taken), 1 << 20), deadline)
        return taken


_running: set[Worker] = set()
_idle: list[Worker] = []
_lock = threading.Lock()


@contextmanager
def worker(nice: int = 0) -> Iterator[Worker]:
    """A decoding process, for the caller alone: one that is idle, or a new one. Raises Unreadable if it cannot be started.

    Args:
      nice: how far it steps back behind others.
    """
    with _lock:
        found = next((one for one in _idle if one.nice == nice), None)
        if found is not None:
            _idle.remove(found)
    try:
        found = found if found is not None and found.alive else Worker(nice)
    except (OSError, TimeoutError, EOFError) as error:
        raise Unreadable(f"no process to decode it in: {error or type(error).__name__}") from None
    try:
        yield found
    except BaseException:
        found.kill()  # it may be in the midst of an answer that nobody waits for
        raise
    if found.alive:
        with _lock:
            _idle.append(found)


@atexit.register
def end() -> None:
    """Ends all decoding processes; who waits for an answer of one hears that it broke down."""
    with _lock:
        idle = [*_idle]
        _idle.clear()
    for one in idle:
        one.kill()
    for one in [*_running]:
        one.stop()


def _forget() -> None:
    """They are the parent's."""
    _running.clear()
    _idle.clear()


os.register_at_fork(after_in_child=_forget)


def _refused(answer: Json) -> None:
    """Raises what the process says is wrong with the file."""
    if "error" in answer:
        raise (TooLarge if answer.get("too large") else Unreadable)(answer["error"])


def decode_apart(data: bytes, bounds: Bounds) -> Decoded:
    """As `jaxface.data.decoding.decode_here`, within `bounds.seconds` and `bounds.memory_mb`. Raises Unreadable."""
    with worker(bounds.nice) as process:
        answer, pixels = process.ask({"do": "photo", "bounds": asdict(bounds)}, data, bounds.seconds)
    _refused(answer)
    return Decoded(np.frombuffer(pixels, np.uint8).reshape(answer["shape"]), answer["damage"])


def frames_apart(path: str, bounds: Bounds, every: int = 1, done: Collection[int] = ()) -> Iterator[Frame | End]:
    """As `jaxface.data.videos.read_frames` for frames that are asked for, each within `bounds.seconds`. Raises Unreadable."""
    request = {"do": "video", "path": path, "every": every, "done": [*done], "bounds": asdict(bounds)}
    with worker(bounds.nice) as process:
        answer, pixels = process.ask(request, b"", bounds.seconds)
        while "shape" in answer:
            if answer["shape"] is not None:
                image = np.frombuffer(pixels, np.uint8).reshape(answer["shape"])
                yield Frame(answer["number"], answer["seconds"], image, answer["damage"])
            answer, pixels = process.next(bounds.seconds)
    _refused(answer)
    yield End(answer["frames"], answer["broken"])
