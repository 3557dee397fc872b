"""How a run is asked to stop, and what it says when it has."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable
from types import FrameType, TracebackType

import jax

from jaxface.cluster import maximum


class Stopped(Exception):
    """The run was asked to stop; its state is saved. `signal` says by what."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped at step {step}, state saved: the same command goes on from there")
        self.signal = number


class StopRequest:
    """SIGTERM or Ctrl-C, to this process or another of the run; a second one to this process is heeded at once.

    Use as a context around the run. Several processes must leave the steps together, since each step needs them all: after each they
    exchange what they were asked, and all hear of it after the same later step.
    """

    def __init__(self) -> None:
        self.mine, self._agreed = 0, 0
        self._votes: deque[Callable[[], int]] = deque()

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.mine:
            raise KeyboardInterrupt
        self.mine = number

    def exchange(self) -> None:
        """Called once after each step is started: reads the answer of the step before, so that no device waits."""
        if jax.process_count() == 1:
            return
        self._votes.append(maximum(self.mine))
        if len(self._votes) > 1:
            self._agreed = max(self._agreed, self._votes.popleft()())

    @property
    def heard(self) -> int:
        """The signal that this step shall be the last one for, 0 for none; the same in every process."""
        return self.mine if jax.process_count() == 1 else self._agreed

    @property
    def alone(self) -> int:
        """The same between steps, where only a process without others may stop."""
        return self.mine if jax.process_count() == 1 else 0
