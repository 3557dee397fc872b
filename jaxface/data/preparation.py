"""From a data set on disk to a prepared folder: checked, cropped, written aside and renamed; killed at any moment, it goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxface.data.cropping import Cropping
from jaxface.data.leakage import Leak, find_leaks, own_hashes, shared_persons, without
from jaxface.data.records import HASHES, LABELS, SUMMARY, TASKS_FILE, Record, label_counts, read_hashes, read_summary
from jaxface.data.shards import Shard, make_shards
from jaxface.data.synthetic import DrawnSet
from jaxface.data.task_files import task_to, write_tasks
from jaxface.data.tasks import Task
from jaxface.digests import file_digest, record_digests
from jaxface.errors import UserError, tell
from jaxface.files import alone_in
from jaxface.progress import Track
from jaxface.ranges import Where, ranged


@ranged()
class Leakage:
    """Faces that are in two splits, of this set or of others.

    Attributes:
      duplicates: report them, or remove this set's record, too: of its own two, the one farther from the test.
      against: prepared folders that will be used together with this one.
    """

    duplicates: Literal["report", "remove"] = "report"
    against: tuple[Where, ...] = ()


def prepare(
    source_name: str,
    folder: Path,
    out: Path,
    *,
    options: Any = None,
    cropping: Cropping | None = None,
    leakage: Leakage | None = None,
    engine: str = "local",
    workers: int = 0,
    content: bool = False,
) -> dict[str, Any]:
    """Writes the records of a data set into `out` and returns the summary.

    Nothing is done where `out` holds the same set already: of the same options, rows and files. A set whose rows or files have changed is
    prepared again. What cannot be used is left out, counted and listed in `summary.json`.

    Args:
      options: how the source is read: a `Reading`, or for drawn faces a `DrawnSet`.
      engine: who writes (see `jaxface.data.engines`), with `workers` processes, 0 for as many as are worth it.
      content: know files by a hash of their content, not by size and time.

    Raises UserError if the folder is not laid out as the source needs it, holds nothing usable, or `out` holds something else.
    """
    from jaxface.data.engines import get_engine
    from jaxface.data.sources import Reading, get_source
    from jaxface.data.sources.base import sort_into_splits

    source, options = get_source(source_name), options or Reading()
    cropping, leakage, run = cropping or Cropping(), leakage or Leakage(), get_engine(engine)
    cropping.check()
    for other in leakage.against:
        read_hashes(other)
    parts = {"options": options, "crop": cropping, "leakage": leakage}
    settings = {"source": source.name, "folder": str(folder)} | {name: _plain(part) for name, part in parts.items()}
    standing = _standing(out, settings)
    if standing and not source.on_disk:
        return standing
    if not standing:
        source.require_taken(options)
    source.check(folder)
    tasks, found = source.read(folder, options)
    records, skipped = sort_into_splits(source, found)
    tasks = measured(tasks, records)
    work = out.parent / f".{out.name}.partial"
    shared = (source.name, source.margin, cropping, tasks, content)
    shards = {split: make_shards(work, split, rows, *shared) for split, rows in records.items()}
    settings["content"] = _content(shards, skipped, cropping, leakage)
    if standing and _same(out, standing, settings):
        return standing
    with alone_in(work):
        standing = _standing(out, settings)  # another process may have written it by now
        if standing and _same(out, standing, settings):
            shutil.rmtree(work, ignore_errors=True)
            return standing
        if standing:
            tell(f"{out}: rows or files have changed since it was prepared: it is prepared again")
        everything = [shard for parts in shards.values() for shard in parts]
        with Track(f"preparing {source.name}", sum(len(shard.records) for shard in everything), unit="images") as track:
            run(everything, workers, lambda shard: track.advance(len(shard.records)))
        leaks = find_leaks(shards, leakage.against)
        shards, removed = without(shards, leaks) if leakage.duplicates == "remove" else (shards, [])
        _refuse_empty(folder, shards, work)
        dropped = [(entry.id, entry.reason) for entry in skipped]
        dropped += [(name, reason) for shard in everything for name, reason in shard.outcome["dropped"]]
        summary = settings | _summary(shards, tasks, dropped + removed, leaks)
        _assemble(work, shards, tasks, summary, out)
    return summary


def _content(shards: dict[str, list[Shard]], skipped: Sequence[Any], cropping: Cropping, leakage: Leakage) -> str:
    """A hash of all that a set is made of: rows, files, the detector's model, and the sets that it is held against."""
    parts = [shard.stem.name for parts in shards.values() for shard in parts] + [repr(list(skipped))]
    for file in (*cropping.files, *(other / HASHES for other in leakage.against)):
        parts.append(file_digest(file))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _assemble(work: Path, shards: dict[str, list[Shard]], tasks: tuple[Task, ...], summary: dict[str, Any], out: Path) -> None:
    """Makes the prepared folder of finished shards, and gives it its name at the very end."""
    from jaxface.data.builder import Faces

    aside = work / "assembled"
    shutil.rmtree(aside, ignore_errors=True)
    filled = {split: [shard for shard in parts if shard.outcome["kept"]] for split, parts in shards.items()}
    files = {split: [(shard.file, len(shard.outcome["kept"])) for shard in parts] for split, parts in filled.items()}
    prepared = Faces(files=files, tasks=tasks, data_dir=aside).write()
    labels = {f"{split}/{task}": values for split, parts in shards.items() for task, values in _labels(parts, tasks).items()}
    np.savez(prepared / LABELS, **dict[str, Any](labels))
    np.savez(prepared / HASHES, **dict[str, Any](own_hashes(shards)))
    (prepared / SUMMARY).write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    (prepared / TASKS_FILE).write_text(write_tasks(tasks), encoding="utf-8")
    record_digests(prepared, sorted(path.name for path in prepared.iterdir()))
    before = work / "before"
    if out.exists():
        out.rename(before)
    try:
        prepared.rename(out)
    except OSError:
        before.rename(out) if before.exists() else None
        raise
    shutil.rmtree(work, ignore_errors=True)


def _refuse_empty(folder: Path, shards: dict[str, list[Shard]], work: Path) -> None:
    """Raises UserError if nothing of a split can be used, and leaves no work behind."""
    for split, parts in shards.items():
        if not any(shard.outcome["kept"] for shard in parts):
            shutil.rmtree(work)
            dropped = [f"{name}: {reason}" for shard in parts for name, reason in shard.outcome["dropped"]]
            count = sum(len(shard.records) for shard in parts)
            why = dropped[-1] if dropped else "each of them is in another split, too"
            raise UserError(f"{folder}: none of its {count} {split} images can be used ({why})")


def _standing(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The summary of the set in a folder, None where there is nothing. Raises UserError for one that was prepared otherwise."""
    if not out.exists() or not any(out.iterdir() if out.is_dir() else [out]):
        return None
    summary = read_summary(out)
    different = [name for name, value in settings.items() if name not in ("folder", "content") and _differs(summary.get(name), value)]
    if different:
        raise _another(out, different)
    return summary


def _differs(before: Any, now: Any) -> bool:
    """Whether options are others; one that there was not yet had its default."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return before != now
    from jaxface.data.sources import Reading

    defaults = {name: value for kind in (Cropping, Leakage, Reading) for name, value in _plain(kind()).items()}
    return {**{name: defaults[name] for name in now if name in defaults}, **before} != now


def _another(out: Path, different: Sequence[str]) -> UserError:
    return UserError(f"{out} holds another prepared set (different: {', '.join(different)}): choose another --out, or remove it")


def _same(out: Path, standing: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether a set is made of the same rows and files. Raises UserError for those of another folder."""
    if standing.get("content") == settings["content"]:
        return True
    if standing.get("folder") != settings["folder"]:
        raise _another(out, ["folder"])
    return False


def _plain(options: Any) -> dict[str, Any]:
    """Options as JSON gives them back."""
    return json.loads(json.dumps(dataclasses.asdict(options), default=str))


def _labels(parts: Sequence[Shard], tasks: tuple[Task, ...]) -> dict[str, np.ndarray]:
    """The labels [N, ...] of each task, in the order of the records."""
    rows = [row for shard in parts for row in shard.outcome["labels"]]
    return {task.name: task.of.array(task, [row[index] for row in rows]) for index, task in enumerate(tasks)}


def measured(tasks: Sequence[Task], records: Mapping[str, Sequence[Record]]) -> tuple[Task, ...]:
    """The tasks, those of a number with the mean and the standard deviation of its training labels."""
    rows = records.get("train") or [row for part in records.values() for row in part]
    return tuple(task.of.measured(task, [row.labels[task.name] for row in rows if task.name in row.labels]) for task in tasks)


def _summary(
    shards: dict[str, list[Shard]], tasks: tuple[Task, ...], dropped: Sequence[tuple[str, str]], leaks: Sequence[Leak]
) -> dict[str, Any]:
    splits = {}
    for split, parts in shards.items():
        counts = label_counts(_labels(parts, tasks), {task.name: task for task in tasks})
        splits[split] = {"records": sum(len(shard.outcome["kept"]) for shard in parts), "labels": counts}
    return {
        "classes": {task.name: list(task.classes) for task in tasks},
        "tasks": {task.name: task_to(task) for task in tasks},
        "splits": splits,
        "dropped": {
            "count": len(dropped),
            "reasons": dict(Counter(reason for _, reason in dropped).most_common()),
            "files": [{"id": name, "reason": reason} for name, reason in dropped],
        },
        "duplicates": {
            "count": len(leaks),
            "between": dict(Counter(leak.between for leak in leaks).most_common()),
            "pairs": [dataclasses.asdict(leak) for leak in leaks],
        },
        "persons": shared_persons(shards),
        "damaged": [
            {"id": name, "reason": reason} for parts in shards.values() for shard in parts for name, reason in shard.outcome["damaged"]
        ],
    }


def prepare_synthetic(out: Path, **drawings: Any) -> None:
    """Writes drawn faces into a prepared folder; does nothing where the same ones stand already. Raises UserError as `prepare`."""
    prepare("synthetic", Path(drawings["style"]), out, options=DrawnSet(**drawings))
