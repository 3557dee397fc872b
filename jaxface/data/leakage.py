"""Faces that are in two splits: found over this set and others, and left out where that is wanted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from jaxface.data.duplicates import near_pairs
from jaxface.data.records import Record, open_records, read_hashes
from jaxface.data.shards import Shard, record_writer
from jaxface.files import write_json

KEPT_FIRST = ("test", "validation", "train")
"""Of one face in two splits, the record in the first of them is kept."""


@dataclass(frozen=True)
class Leak:
    """A record of this set whose picture is in another split, too.

    Attributes:
      split, index, id: the record that would have to go.
      of: the folder of the other record ('' for this set), its split and id.
    """

    split: str
    index: int
    id: str
    of: tuple[str, str, str]

    @property
    def between(self) -> str:
        """Which two splits share it, for counting."""
        folder, split, _ = self.of
        return f"{self.split} and {split}" + (f" of {folder}" if folder else "")


def own_hashes(shards: Mapping[str, Sequence[Shard]]) -> dict[str, np.ndarray]:
    """The hashes [N, 32] of each split's records, in order."""
    return {
        split: np.frombuffer(bytes.fromhex("".join(code for shard in parts for code in shard.outcome["hashes"])), np.uint8).reshape(-1, 32)
        for split, parts in shards.items()
    }


def kept_records(shards: Sequence[Shard]) -> list[Record]:
    """The records of a split that were written, in order."""
    return [shard.records[position] for shard in shards for position in shard.outcome["kept"]]


def find_leaks(shards: Mapping[str, Sequence[Shard]], against: Sequence[Path] = ()) -> list[Leak]:
    """The records whose picture is in another split of this set, nearer to the test, or in another split of the folders `against`.

    Raises UserError if one of those is not a prepared folder.
    """
    own = own_hashes(shards)
    leaks: dict[tuple[str, int], Leak] = {}
    for split in (split for split in KEPT_FIRST if split in own):
        names = [record.id for record in kept_records(shards[split])]
        for folder, other, hashes in _others(own, split, against):
            for i, j in near_pairs(own[split], hashes):
                of = (str(folder or ""), other, _name(shards, folder, other, int(j)))
                leaks.setdefault((split, int(i)), Leak(split, int(i), names[i], of))
    return list(leaks.values())


def shared_persons(shards: Mapping[str, Sequence[Shard]]) -> dict[str, list[str]]:
    """The persons who are in two splits of this set, `train and test`, in the order of their names."""
    persons = {split: {record.person for record in kept_records(parts)} - {""} for split, parts in shards.items()}
    both = {f"{a} and {b}": sorted(persons[a] & persons[b]) for a, b in combinations(persons, 2)}
    return {between: names for between, names in both.items() if names}


def _others(own: Mapping[str, np.ndarray], split: str, against: Sequence[Path]) -> Iterator[tuple[Path | None, str, np.ndarray]]:
    """The folder (None for this set), split and hashes of what a split must not share a picture with."""
    for other in KEPT_FIRST[: KEPT_FIRST.index(split)]:
        if other in own:
            yield None, other, own[other]
    for folder in against:
        for other, hashes in read_hashes(folder).items():
            if other != split:
                yield folder, other, hashes


def _name(shards: Mapping[str, Sequence[Shard]], folder: Path | None, split: str, index: int) -> str:
    """The id of a record by its place in a split."""
    if folder is not None:
        return open_records(folder, split)[index]["id"]
    return kept_records(shards[split])[index].id


def without(shards: Mapping[str, Sequence[Shard]], leaks: Sequence[Leak]) -> tuple[dict[str, list[Shard]], list[tuple[str, str]]]:
    """The shards without the leaking records, written again where they held one, and what was left out, with why."""
    kept: dict[str, list[Shard]] = {}
    for split, parts in shards.items():
        gone = {leak.index for leak in leaks if leak.split == split}
        start, kept[split] = 0, []
        for shard in parts:
            count = len(shard.outcome["kept"])
            kept[split].append(_thinned(shard, sorted(index - start for index in gone if start <= index < start + count)))
            start += count
    return kept, [(leak.id, f"the same picture as {leak.of[2]} in {leak.between.partition(' and ')[2]}") for leak in leaks]


def _thinned(shard: Shard, gone: Sequence[int]) -> Shard:
    """A shard without some of its written records."""
    from array_record.python.array_record_module import ArrayRecordReader

    if not gone:
        return shard
    code = hashlib.sha256(repr(gone).encode()).hexdigest()[:8]
    thinned = replace(shard, stem=shard.stem.with_name(f"{shard.stem.name}-{code}"))
    stay = [index for index in range(len(shard.outcome["kept"])) if index not in set(gone)]
    reader = ArrayRecordReader(str(shard.file))
    with record_writer(thinned.file) as write:
        for index in stay:
            write(reader.read([index])[0])
    reader.close()
    stayed = {name: [shard.outcome[name][index] for index in stay] for name in ("labels", "hashes", "kept")}
    write_json(thinned.done, shard.outcome | stayed)
    return thinned
