"""Results on disk: one JSON line an image, appended and never torn, from which CSV and Parquet are made at the end.

A killed job leaves at most half a line, which is cut off when it goes on; what stands in whole lines is not done again, unless its file has
changed since: beside the lines stands what each file was like when it was looked at.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from jaxface.data.task_files import tasks_told
from jaxface.data.tasks import Task
from jaxface.errors import UserError, os_line, printable
from jaxface.files import WRITTEN, aside, check_output, held, read_object, to_json, write_json, written
from jaxface.prediction import doubt

Json = dict[str, Any]
CHUNK = 20_000
"""Rows of a Parquet file that are held at a time."""


FINISHED = "finished"
"""Key of the description that says that the table was made."""


def _line(value: Json) -> bytes:
    return to_json(value).encode() + b"\n"


def _whole_lines(path: Path) -> Iterator[Json]:
    """The JSON values of all whole lines of a file; what follows the last of them is cut off. Raises UserError for another line."""
    whole = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                yield json.loads(line)
            except ValueError:
                raise UserError(f"{path}: a line is no result of this command: remove the file, or choose another --out") from None
            whole += len(line)
    os.truncate(path, whole)


class Journal:
    """The results of one job, or of one shard of it. Use as a context; `write` appends, `close` makes the file that was asked for.

    Attributes:
      out: the file that was asked for.
      path: the lines themselves: `out`, or a file beside it where `out` is CSV or Parquet.
      done: the images that have a line.

    Raises UserError if `out` holds another job's results, is being written by another command, or cannot be written.
    """

    def __init__(self, out: Path, about: Json) -> None:
        check_output(out)
        self.out, self.about = out, about
        self.path = out if out.suffix == ".jsonl" else out.with_name(f"{out.name}.lines.jsonl")
        self.description, self.stamps_path = (out.with_name(f"{out.name}.{name}") for name in ("about.json", "files.jsonl"))
        fresh = self._check_about()
        with written(self.path), ExitStack() as opened:
            out.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._open()
            opened.callback(lambda: self._file.close())  # whichever it is by then
            for path in (self.path, self.stamps_path) if fresh else ():
                os.truncate(path, 0) if path.exists() else None
            write_json(self.description, self.about)
            self.done = {(row["path"], row["frame"]) for row in self._recover()}
            self.stamps = {row["path"]: row["stamp"] for row in _whole_lines(self.stamps_path)} if self.stamps_path.exists() else {}
            self._stamps_file = opened.enter_context(self.stamps_path.open("ab"))
            self._opened = opened.pop_all()
        self._now: Mapping[str, str] = {}

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._opened.close()

    def _check_about(self) -> bool:
        """Whether the job begins anew: there is none yet, or a finished one whose results were taken away."""
        if self.description.is_file():
            before = read_object(self.description, f": remove it and {self.out}")
            finished = before.pop(FINISHED, False)
            if not self.out.exists() and (finished or self.out == self.path):
                return True
            different = sorted(name for name in {*before, *self.about} if before.get(name) != self.about.get(name))
            if different:
                raise UserError(f"{self.out} holds results of another job (different: {', '.join(different)}): choose another --out")
        elif any(path.exists() and path.stat().st_size for path in (self.out, self.path)):  # an empty one is of a job that could not begin
            raise UserError(f"{self.out} exists already and was not written by this command: choose another --out, or remove it")
        return False

    def _open(self) -> BinaryIO:
        """The file of lines, which this process alone may write."""
        busy = f"{self.out}: another command is writing it: wait for it, or choose another --out"
        return open(self.path, "ab", opener=lambda path, flags: held(Path(path), busy, flags))

    def _recover(self) -> Iterator[Json]:
        """All whole lines, one at a time; half a line at the end is cut off. Raises UserError for a line that is no result."""
        for row in _whole_lines(self.path):
            if not isinstance(row, dict) or not {"path", "frame"} <= row.keys():
                raise UserError(f"{self.path}: a line is no result of this command: remove the file, or choose another --out")
            yield row

    def take_up(self, found: Mapping[str, Sequence[str | int]]) -> int:
        """Drops the results of files that have changed, and returns how many those are.

        Args:
          found: what the files are like now, by path (`jaxface.digests.stamp_of`).
        """
        self._now = stamps = {path: " ".join(map(str, stamp)) for path, stamp in found.items()}
        known = {path for path, _ in self.done}
        changed = {path for path in known & stamps.keys() if self.stamps.get(path, stamps[path]) != stamps[path]}
        if changed:
            with aside(self.path) as temporary, temporary.open("wb") as file:
                file.writelines(_line(row) for row in self.rows() if row["path"] not in changed)
            self._file.close()
            self._file = self._open()
            self.done = {key for key in self.done if key[0] not in changed}
            self.stamps = {path: stamp for path, stamp in self.stamps.items() if path not in changed}
        return len(changed)

    def write(self, result: Json) -> None:
        """Appends one image's result, at once: what is written survives the death of the process."""
        path = result["path"]
        try:
            if path in self._now and self.stamps.get(path) != self._now[path]:
                self.stamps[path] = self._now[path]
                self._stamps_file.write(_line({"path": path, "stamp": self._now[path]}))
                self._stamps_file.flush()
            self._file.write(_line(result))
            self._file.flush()
        except OSError as error:
            raise UserError(f"{os_line(error, self.path, 'written')}; the same command goes on from here") from None

    def rows(self) -> Iterator[Json]:
        """All results so far."""
        with self.path.open("rb") as file:
            yield from map(json.loads, file)

    def finish(self) -> None:
        """Makes CSV or Parquet of the lines, whole or not at all."""
        FORMATS[self.out.suffix](self)
        write_json(self.description, self.about | {FINISHED: True})

    def columns(self) -> dict[str, pa.DataType]:
        """Names and types of a table with one row a face, or one for an image without."""
        text, number, real = pa.string(), pa.int64(), pa.float64()
        columns = {"path": text, "frame": number, "seconds": real, "frames": number, "status": text, "error": text}
        columns |= {"width": number, "height": number, "face": number}
        columns |= dict.fromkeys(("x0", "y0", "x1", "y1", "score"), real)
        if self.about.get("tracks"):
            columns |= {"track": number, "track_frames": number, "track_start": real, "track_end": real}
        for task in self.tasks.values():
            own = task.of.columns(task) | doubt.columns(self.about, task)
            columns |= {name: text if kind is str else real for name, kind in own.items()}
        return columns

    @property
    def tasks(self) -> dict[str, Task]:
        """Whose answers the results hold."""
        return tasks_told(self.about["classes"], self.about.get("tasks", {}))

    def table_rows(self) -> Iterator[Json]:
        """The rows of that table."""
        tasks = self.tasks
        for result in self.rows():
            faces = result.pop("faces")
            for index, face in enumerate(faces or [None]):
                yield result | ({} if face is None else {"face": index} | flat_face(face, tasks))


def flat_face(face: Json, tasks: Mapping[str, Task]) -> Json:
    """A face's values as columns."""
    row = dict(zip(("x0", "y0", "x1", "y1"), face["box"], strict=True)) | {"score": face["score"]}
    row |= {name: value for name, value in face.items() if name.startswith("track")}
    for name, task in tasks.items():
        row |= task.of.cells(task, face[name]) | doubt.cells(task, face[name])
    return row


FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How cells begin that a spreadsheet computes."""


def _cell(value: Any) -> Any:
    """A cell that spreadsheets show and do not compute, in Unicode."""
    if not isinstance(value, str):
        return value
    return "'" * value.startswith(FORMULA) + printable(value)


def _write_csv(journal: Journal) -> None:
    with aside(journal.out) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(journal.columns()))
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in journal.table_rows())


def _write_parquet(journal: Journal) -> None:
    schema = pa.schema(list(journal.columns().items()), metadata={b"jaxface": json.dumps(journal.about).encode()})
    with aside(journal.out) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        rows: list[Json] = []
        for row in journal.table_rows():
            rows.append({name: printable(value) if isinstance(value, str) else value for name, value in row.items()})  # Unicode alone
            if len(rows) == CHUNK:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, schema))


FORMATS = dict(zip(WRITTEN, (_write_csv, lambda journal: None, _write_parquet), strict=True))
"""What is made of the lines, by the suffix of the file."""
