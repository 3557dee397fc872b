"""The process that decodes apart (`jaxface.data.apart` asks it): its memory and time are limited, and it may be killed.

It reads requests from its standard input and answers on its standard output; each is a line of JSON and the bytes it announces. What
decoders write to standard error is caught, and comes back as the file's damage.
"""

from __future__ import annotations

import json
import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from jaxface.data.decoding import decode_here
from jaxface.data.formats import Bounds
from jaxface.data.headers import TooLarge, Unreadable, header
from jaxface.data.videos import End, read_frames

HARMLESS = re.compile(r"unknown field|unknown tag|not divisible|tag_warning|SRGB is assumed", re.IGNORECASE)
"""What decoders say of files that are whole."""
Json = dict[str, Any]


SLACK = 32_000_000
"""Bytes that a file is given at least."""


def memory() -> int:
    """Bytes that this process holds now; 0 where a system does not tell."""
    try:
        with open("/proc/self/status") as file:
            return next((1024 * int(line.split()[1]) for line in file if line.startswith("VmData:")), 0)
    except OSError:
        return 0


def limit(megabytes: float | None, seconds: float, base: int = 0) -> None:
    """Lets this process take so much more memory and time than it has now. Where a system cannot do that, nothing is limited.

    Args:
      base: count from this many bytes, so that a file is given the same whatever earlier ones have left behind; but no less than `SLACK`.
    """
    try:
        import resource

        if megabytes is not None and (now := memory()):
            most = max((base or now) + int(1e6 * megabytes), now + SLACK)
            resource.setrlimit(resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + seconds) + 1, resource.RLIM_INFINITY))
    except (ImportError, OSError, ValueError):
        pass


def allowance(data: bytes, bounds: Bounds) -> float:
    """Megabytes that a file's decoder may take: as many as its picture needs by what its header says of it."""
    found = header(data)
    return bounds.memory_mb if found is None else min(bounds.memory_mb, 128 + 64e-6 * found.width * found.height)


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
    limit(bounds.memory_mb, 2 * bounds.seconds * (os.cpu_count() or 1))  # a header may be a trap, too
    limit(allowance(data, bounds), 2 * bounds.seconds * (os.cpu_count() or 1), START)
    pixels, damage = decode_here(data, bounds)
    yield {"shape": pixels.shape, "damage": damage or complaints.take()}, pixels


def _video(request: Json, data: bytes, bounds: Bounds, complaints: Complaints) -> Iterator[tuple[Json, np.ndarray]]:
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


START = memory()
"""Bytes that this process holds when it has imported what it needs."""
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
            _answer(out, {"error": str(error), "too large": isinstance(error, TooLarge)})
        except MemoryError:
            _answer(out, {"error": "does not fit into memory"})
        limit(1e9, 1e6)
        complaints.take()


if __name__ == "__main__":
    serve()
