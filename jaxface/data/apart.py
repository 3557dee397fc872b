"""Decoding in a process of its own, which is killed when it takes too long and cannot take more memory than it may.

The process reads requests from its standard input and answers on its standard output; each is a line of JSON and the bytes it announces.
What decoders write to standard error is caught there, and comes back as the file's damage.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, BinaryIO

import numpy as np

from jaxface.data.formats import Bounds, Decoded
from jaxface.data.images import Unreadable, header
from jaxface.data.videos import End, Frame

START_SECONDS = 60.0
"""For the process to start, on a machine that is busy."""
HARMLESS = re.compile(r"unknown field|unknown tag|not divisible|tag_warning|SRGB is assumed", re.IGNORECASE)
"""What decoders say of files that are whole."""
Json = dict[str, Any]


class Worker:
    """The parent's end of a decoding process."""

    def __init__(self) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "jaxface.data.apart"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0, env=environment
        )
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
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

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


_idle: list[Worker] = []
_lock = threading.Lock()


@contextmanager
def worker() -> Iterator[Worker]:
    """A decoding process, for the caller alone: one that is idle, or a new one. Raises Unreadable if it cannot be started."""
    with _lock:
        found = _idle.pop() if _idle else None
    try:
        found = found if found is not None and found.alive else Worker()
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
def _end() -> None:
    for one in _idle:
        one.kill()


os.register_at_fork(after_in_child=_idle.clear)


def decode_apart(data: bytes, bounds: Bounds) -> Decoded:
    """As `jaxface.data.decoding.decode_here`, within `bounds.seconds` and `bounds.memory_mb`. Raises Unreadable."""
    with worker() as process:
        answer, pixels = process.ask({"do": "photo", "bounds": asdict(bounds)}, data, bounds.seconds)
    if "error" in answer:
        raise Unreadable(answer["error"])
    return Decoded(np.frombuffer(pixels, np.uint8).reshape(answer["shape"]), answer["damage"])


def frames_apart(path: str, bounds: Bounds, every: int = 1, done: Collection[int] = ()) -> Iterator[Frame | End]:
    """As `jaxface.data.videos.read_frames` for frames that are asked for, each within `bounds.seconds`. Raises Unreadable."""
    request = {"do": "video", "path": path, "every": every, "done": [*done], "bounds": asdict(bounds)}
    with worker() as process:
        answer, pixels = process.ask(request, b"", bounds.seconds)
        while "shape" in answer:
            if answer["shape"] is not None:
                image = np.frombuffer(pixels, np.uint8).reshape(answer["shape"])
                yield Frame(answer["number"], answer["seconds"], image, answer["damage"])
            answer, pixels = process.next(bounds.seconds)
    if "error" in answer:
        raise Unreadable(answer["error"])
    yield End(answer["frames"], answer["broken"])


def limit(megabytes: float | None, seconds: float) -> None:
    """Lets this process take so much more memory and time than it has now. Where a system cannot do that, nothing is limited."""
    try:
        import resource

        with open("/proc/self/status") as file:
            now = next(1024 * int(line.split()[1]) for line in file if line.startswith("VmData:"))
        if megabytes is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (now + int(1e6 * megabytes), resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + seconds) + 1, resource.RLIM_INFINITY))
    except (ImportError, OSError, ValueError, StopIteration):
        pass


def allowance(data: bytes, bounds: Bounds) -> float:
    """Megabytes that a file's decoder may take: as many as its picture needs by what its header says of it."""
    with header(data) as image:
        return bounds.memory_mb if image is None else min(bounds.memory_mb, 128 + 64e-6 * image.width * image.height)


class Complaints:
    """What decoders write to standard error."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process)
        os.dup2(self._file.fileno(), 2)

    def take(self) -> str:
        """The first line since the last time, without its place in a decoder's source; '' for none."""
        text = os.pread(self._file.fileno(), 1 << 16, 0).decode(errors="replace")
        os.ftruncate(self._file.fileno(), 0)
        os.lseek(self._file.fileno(), 0, os.SEEK_SET)
        lines = [line for line in text.splitlines() if line.strip() and not HARMLESS.search(line)]
        return (
            " ".join(re.sub(r"^\[\s*\w+:\d+@[\d.]+\]\s*global\s+\S+\s+\w+\s*|/\S+:\s*:?\s*| @ 0x[0-9a-f]+", "", lines[0]).split())[:300]
            if lines
            else ""
        )


def _answer(out: BinaryIO, answer: Json, data: memoryview | bytes = b"") -> None:
    out.write(json.dumps(answer | {"bytes": len(data)}).encode() + b"\n")
    out.write(data)
    out.flush()


def _photo(request: Json, data: bytes, bounds: Bounds, complaints: Complaints) -> Iterator[tuple[Json, np.ndarray]]:
    from jaxface.data.decoding import decode_here

    limit(allowance(data, bounds), 2 * bounds.seconds * (os.cpu_count() or 1))
    pixels, damage = decode_here(data, bounds)
    yield {"shape": pixels.shape, "damage": damage or complaints.take()}, pixels


def _video(request: Json, data: bytes, bounds: Bounds, complaints: Complaints) -> Iterator[tuple[Json, np.ndarray]]:
    from jaxface.data.videos import read_frames

    limit(bounds.memory_mb, 2 * bounds.seconds * (os.cpu_count() or 1))
    try:
        for frame in read_frames(request["path"], bounds, request["every"], set(request["done"]), complaints.take):
            limit(None, 2 * bounds.seconds * (os.cpu_count() or 1))
            if isinstance(frame, End):
                yield {"frames": frame.frames, "broken": frame.broken}, NOTHING
                continue
            about = {"number": frame.number, "seconds": frame.seconds, "damage": frame.damage}
            wanted = frame.pixels is not None
            yield about | {"shape": frame.pixels.shape if wanted else None}, frame.pixels if wanted else NOTHING
    except MemoryError:
        raise Unreadable("does not fit into memory") from None
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(f"cannot be decoded ({' '.join(str(error).split()) or type(error).__name__})") from None


JOBS = {"photo": _photo, "video": _video}
NOTHING = np.zeros(0, np.uint8)


def serve() -> None:
    """The process: answers until its input ends."""
    import warnings

    import av.logging
    import cv2

    av.logging.restore_default_callback()  # to standard error, which is caught
    av.logging.set_libav_level(av.logging.ERROR)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process, by ending its input
    requests, out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    complaints = Complaints()
    warnings.simplefilter("ignore")
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_WARNING)
    _answer(out, {"ready": True})
    while line := requests.readline():
        request = json.loads(line)
        data, bounds = requests.read(request["bytes"]), Bounds(**request["bounds"])
        try:
            for answer, pixels in JOBS[request["do"]](request, data, bounds, complaints):
                _answer(out, answer, np.ascontiguousarray(pixels).reshape(-1).data)
        except Unreadable as error:
            _answer(out, {"error": str(error)})
        limit(1e9, 1e6)
        complaints.take()


if __name__ == "__main__":
    serve()
