"""The terminal while an epoch runs: one live table; plain lines now and then where there is no terminal."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from types import TracebackType

import jax
from rich.console import Console
from rich.live import Live
from rich.table import Table

from jaxface.progress import Track


class EpochDisplay(Track):
    """Counts an epoch's images and shows the newest line of metrics.

    Use as a context, as `Track`; `show(line)` takes a line of `metrics.jsonl`.
    """

    def __init__(self, title: str, total: int, tasks: tuple[str, ...], *, done: int = 0) -> None:
        super().__init__(title, total, unit="images", done=done)
        self.tasks, self.line = tasks, {}
        self._live: Live | None = None

    def __enter__(self) -> EpochDisplay:
        if sys.stderr.isatty():
            self._live = Live(get_renderable=self.table, console=Console(stderr=True), refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
        else:
            super().__exit__(kind, error, trace)

    def advance(self, count: int = 1) -> None:
        """Counts finished images."""
        if self._live is None:
            super().advance(count)
        else:
            self.done += count

    def show(self, line: Mapping[str, float]) -> None:
        """Takes a step's metrics."""
        self.line = line
        named = (f"{task} {100 * line[f'accuracy/{task}']:.0f}%" for task in self.tasks if f"accuracy/{task}" in line)
        self.note(f"loss {line['loss']:.3f} " + " ".join(named))

    def table(self) -> Table:
        """The tasks' losses, weights and accuracies; below them the rates, the speed, the time left and the memory."""
        left = (self.total - self.done) / self.rate if self.rate else float("inf")
        rates = (f"{name.partition('/')[2]} {value:.1e}" for name, value in self.line.items() if name.startswith("learning_rate/"))
        speed = f"{self.done}/{self.total} images, {self.rate:.1f}/s, {left:.0f} s left, {memory()}"
        table = Table("task", "loss", "weight", "accuracy", title=self.title, caption=f"{speed}\n{', '.join(rates)}")
        for task in self.tasks:
            table.add_row(
                task, *(self._cell(f"{name}/{task}", form) for name, form in (("loss", ".3f"), ("weight", ".3f"), ("accuracy", ".1%")))
            )
        if len(self.tasks) > 1:
            table.add_row("all", self._cell("loss", ".3f"), "", "")
        return table

    def _cell(self, name: str, form: str) -> str:
        return format(self.line[name], form) if name in self.line else ""


def memory() -> str:
    """The most memory that was in use: of the first device where it tells, else of this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return f"device memory {stats['peak_bytes_in_use'] / 2**30:.1f} GiB"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GiB"
