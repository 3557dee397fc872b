"""Results on disk: one JSON line an image, appended and never torn, from which CSV and Parquet are made at the end.

A killed job leaves at most half a line, which is cut off when it goes on; what stands in whole lines is not done again.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jaxface.errors import UserError
from jaxface.files import WRITTEN, aside, check_output, write_json
from jaxface.prediction.items import Key

Json = dict[str, Any]
CHUNK = 20_000
"""Rows of a Parquet file that are held at a time."""


class Journal:
    """The results of one job, or of one shard of it. Use as a context; `write` appends, `close` makes the file that was asked for.

    Attributes:
      out: the file that was asked for.
      path: the lines themselves: `out`, or a file beside it where `out` is CSV or Parquet.
      done: the images that have a line.

    Raises UserError if `out` holds another job's results, or cannot be written.
    """

    def __init__(self, out: Path, about: Json) -> None:
        check_output(out)
        self.out, self.about = out, about
        self.path = out if out.suffix == ".jsonl" else out.with_name(f"{out.name}.lines.jsonl")
        self.description = out.with_name(f"{out.name}.about.json")
        self._check_about()
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
            self.done = self._recover()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror or error}") from None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def _check_about(self) -> None:
        """Takes up a job of the same model and options only."""
        if self.description.is_file():
            try:
                before = json.loads(self.description.read_text())
            except (OSError, ValueError) as error:
                raise UserError(f"{self.description}: cannot be read ({error}): remove it and {self.out}") from None
            different = sorted(name for name in {*before, *self.about} if before.get(name) != self.about.get(name))
            if different:
                raise UserError(f"{self.out} holds results of another job (different: {', '.join(different)}): choose another --out")
        elif self.out.exists() or self.path.exists():
            raise UserError(f"{self.out} exists already and was not written by this command: choose another --out, or remove it")
        write_json(self.description, self.about)

    def _recover(self) -> set[Key]:
        """The keys of all whole lines; half a line at the end is cut off."""
        whole, done = 0, set()
        with self.path.open("rb") as file:
            for line in file:
                try:
                    row = json.loads(line) if line.endswith(b"\n") else None
                    key = None if row is None else (row["path"], row["frame"])
                except (ValueError, TypeError, KeyError):
                    raise UserError(f"{self.path}: a line is no result of this command: remove the file, or choose another --out") from None
                if key is None:
                    break
                done.add(key)
                whole += len(line)
        os.truncate(self.path, whole)
        return done

    def write(self, result: Json) -> None:
        """Appends one image's result, at once: what is written survives the death of the process."""
        try:
            self._file.write(json.dumps(result, ensure_ascii=True).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror or error}; the same command goes on from here") from None

    def rows(self) -> Iterator[Json]:
        """All results so far."""
        with self.path.open("rb") as file:
            yield from map(json.loads, file)

    def finish(self) -> None:
        """Makes CSV or Parquet of the lines, whole or not at all."""
        FORMATS[self.out.suffix](self)

    def columns(self) -> dict[str, pa.DataType]:
        """Names and types of a table with one row a face, or one for an image without."""
        text, number, real = pa.string(), pa.int64(), pa.float64()
        columns = {"path": text, "frame": number, "status": text, "error": text, "width": number, "height": number, "face": number}
        columns |= dict.fromkeys(("x0", "y0", "x1", "y1", "score"), real)
        for task, classes in self.about["classes"].items():
            columns |= {task: text, f"{task}_confidence": real} | {f"{task}_{name}": real for name in classes}
        return columns

    def table_rows(self) -> Iterator[Json]:
        """The rows of that table."""
        for result in self.rows():
            faces = result.pop("faces")
            for index, face in enumerate(faces or [None]):
                yield result | ({} if face is None else {"face": index} | flat_face(face, self.about["classes"]))


def flat_face(face: Json, tasks: Mapping[str, Sequence[str]]) -> Json:
    """A face's values as columns."""
    row = dict(zip(("x0", "y0", "x1", "y1"), face["box"], strict=True)) | {"score": face["score"]}
    for task in tasks:
        answer = face[task]
        row |= {task: answer["class"], f"{task}_confidence": answer["confidence"]}
        row |= {f"{task}_{name}": value for name, value in answer["probabilities"].items()}
    return row


def _write_csv(journal: Journal) -> None:
    with aside(journal.out) as temporary, temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, list(journal.columns()))
        writer.writeheader()
        writer.writerows(journal.table_rows())


def _write_parquet(journal: Journal) -> None:
    schema = pa.schema(list(journal.columns().items()), metadata={b"jaxface": json.dumps(journal.about).encode()})
    with aside(journal.out) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        rows: list[Json] = []
        for row in journal.table_rows():
            rows.append(row | {"path": row["path"].encode("utf-8", "replace").decode()})  # Parquet knows only Unicode
            if len(rows) == CHUNK:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, schema))


FORMATS = dict(zip(WRITTEN, (_write_csv, lambda journal: None, _write_parquet), strict=True))
"""What is made of the lines, by the suffix of the file."""
