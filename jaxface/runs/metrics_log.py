"""The run's metrics as JSON lines and TensorBoard events."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import scalar

from jaxface.files import aside
from jaxface.runs.folder import read_metrics


class MetricsLog:
    """Appends one JSON object per step or evaluation to `metrics.jsonl`, and the same numbers as TensorBoard events.

    Args:
      step: that the run goes on from: lines of later steps are dropped, they will be written again.
      again: splits whose line of this very step will be written again, too.
    """

    def __init__(self, folder: Path, step: int, again: Collection[str] = ()) -> None:
        self.path = folder / "metrics.jsonl"
        lines = read_metrics(self.path) if self.path.exists() else ()
        kept = [line for line in lines if line["step"] < step or (line["step"] == step and line["split"] not in again)]
        seconds = max((line["time"] for line in kept), default=0.0)
        with aside(self.path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._start = time.monotonic() - seconds
        self._file = self.path.open("a")
        (folder / "events").mkdir(exist_ok=True)
        self._events = EventsWriter(str(folder / "events" / "events"))  # not SummaryWriter, whose thread dies alone on a full disk
        self._event(step + 1, session_log=SessionLog(status=SessionLog.START))  # hides what a killed run logged after the step

    def write(self, split: str, step: int, epoch: int, values: dict[str, float]) -> None:
        """Writes one line; `values` have names like `loss/age`."""
        line = {"step": step, "epoch": epoch, "split": split, "time": round(time.monotonic() - self._start, 3), **values}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._event(step, summary=Summary(value=[scalar(f"{split}/{name}", value).value[0] for name, value in values.items()]))
        self._events.flush()

    def _event(self, step: int, **what: Any) -> None:
        self._events.write_event(Event(wall_time=time.time(), step=step, **what))

    def close(self) -> None:
        """Writes out what is left."""
        self._file.close()
        self._events.close()
