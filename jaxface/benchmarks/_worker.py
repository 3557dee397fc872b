"""A process that holds one case and runs it when it is told to, so that each case has its own memory and cases can take turns."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from operator import truediv
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

from jaxface.benchmarks._step_cases import Shape
from jaxface.errors import UserError
from jaxface.progress import Track

NOTE = re.compile(r"-+$|For simplicity, JAX has removed")
"""What JAX prints behind an error."""


class Worker:
    """One case in a process of its own; use as a context.

    Args:
      maker: the function of a module that makes of a case's name and a shape what is to be run.

    Raises UserError if the case cannot be made there (the message is the process's last line).
    """

    def __init__(self, maker: Callable[[str, Shape], Callable[[], Any]], case: str, shape: Shape) -> None:
        name = getattr(maker, "__name__", "")
        self.name = f"{name} {case}"
        command = [sys.executable, "-m", "jaxface.benchmarks._worker", maker.__module__, name, case, json.dumps(shape)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> Worker:
        self._ask(None)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def run(self) -> float:
        """Runs the case twice: seconds of the second time. The first after a pause pays for memory that was given away meanwhile."""
        return self._ask("run")

    def peak_memory(self) -> int:
        """The most memory that the process held since its first two runs, in bytes."""
        return int(self._ask("memory"))

    def _ask(self, word: str | None) -> float:
        if word is not None:
            print(word, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            lines = [line for line in self._process.stderr.read().splitlines() if line.strip() and not NOTE.match(line)]
            raise UserError(f"{self.name}: {lines[-1] if lines else 'the process ended'}")
        return float(answer)


def take_turns(workers: Mapping[str, Worker], rounds: int, track: Track) -> dict[str, list[float]]:
    """Seconds of every run: each round runs every worker once, so that all see the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            seconds[name].append(worker.run())
        track.advance()
    return seconds


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over rounds of ours / theirs: what slows the machine for a while slows both."""
    return median(map(truediv, ours, theirs))


def _forget_peak() -> None:
    """Gives back what making the case has left over, and starts the count of the peak anew, where the system can."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """The most memory that this process has held where it computes, in bytes: a GPU's arrays, or else all of the process's pages."""
    jax, torch = sys.modules.get("jax"), sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    if jax and not torch and (stats := jax.local_devices()[0].memory_stats()):
        return stats["peak_bytes_in_use"]
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Makes the case, runs it twice, says so, and then does what it reads."""
    module, maker, name, shape = sys.argv[1:]
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever libraries print must not look like an answer
    case = getattr(importlib.import_module(module), maker)(name, Shape(*json.loads(shape)))
    case()
    case()
    _forget_peak()
    print(0, file=answers, flush=True)
    for word in map(str.strip, sys.stdin):
        if word == "run":
            case()
            start = time.perf_counter()
            case()
            answer = time.perf_counter() - start
        else:
            answer = peak_memory()
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    main()
