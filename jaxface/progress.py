"""Progress of long work: a live bar in a terminal, a plain line now and then where there is none."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_SECONDS = 10.0
"""Seconds between two plain lines."""


class Track:
    """Counts pieces of work and shows how many a second are done and when the rest will be.

    Use as a context: `with Track("training", total) as track: track.advance(); track.note("loss 1.2")`.
    """

    def __init__(self, title: str, total: int, *, unit: str = "steps", done: int = 0) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done, self.text = done, ""
        self._start, self._first, self._last_line = time.monotonic(), done, time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Track:
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
            console = Console(stderr=True)
            self._bar = Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console)
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.done, text="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self.done > self._first:
            self._line()

    @property
    def rate(self) -> float:
        """Pieces per second since the start."""
        return (self.done - self._first) / max(time.monotonic() - self._start, 1e-9)

    def advance(self, count: int = 1) -> None:
        """Counts finished pieces."""
        self.done += count
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, text=f"{self.rate:.1f} {self.unit}/s {self.text}")
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._line()

    def note(self, text: str) -> None:
        """Sets the words behind the bar."""
        self.text = text

    def _line(self) -> None:
        left = (self.total - self.done) / self.rate if self.rate else float("inf")
        print(
            f"{self.title}: {self.done}/{self.total}, {self.rate:.1f} {self.unit}/s, {left:.0f} s left {self.text}",
            file=sys.stderr,
            flush=True,
        )
        self._last_line = time.monotonic()
