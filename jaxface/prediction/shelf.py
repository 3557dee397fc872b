"""The adapters of a server: all of them on disk, the last used in memory; listed, replaced and removed while it serves."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxface.digests import stamp_of
from jaxface.errors import UserError, tell
from jaxface.files import read_object, write_json
from jaxface.prediction.adapter_folders import adapters_in, folder_kind
from jaxface.prediction.adapters import Adapter

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What an adapter may be called."""
STATE = "adapters.json"
"""File in the folder that says which adapters it has otherwise than by its subfolders."""


@dataclass(frozen=True)
class Place:
    """Where an adapter is read from, and what stood there when it was taken in."""

    source: str
    stamp: tuple[Any, ...]


class Unknown(UserError):
    """There is no adapter of that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no adapter {name[:100]!r}; GET /adapters lists them")


class Shelf:
    """Adapters by name. Any thread may call it.

    Attributes:
      folder: of run folders; each has the name of its own.
      memory: how many stay in memory.
      loads, hits: how often each was read from disk, and found in memory.

    Args:
      load: (name, run folder) -> the adapter; raises UserError for one that does not fit.
      check: (run folder) raises UserError, without reading what was trained, for one that cannot fit.
    """

    def __init__(self, folder: Path, load: Callable[[str, Path], Adapter], check: Callable[[Path], None], memory: int) -> None:
        self.folder, self.memory, self._load = folder, memory, load
        self.loads: Counter[str] = Counter()
        self.hits: Counter[str] = Counter()
        self._lock, self._changes = threading.Lock(), threading.Lock()
        self._places: dict[str, Place] = {}
        self._held: OrderedDict[str, Adapter] = OrderedDict()
        self._coming: dict[tuple[str, Place], Future[Adapter]] = {}
        self._sources, self._removed = self._read_state()
        for name, source in self._on_disk():
            try:
                check(self._path(source))
                self._places[name] = Place(source, self._stamp(source))
            except UserError as error:
                tell(f"left out: {error}")

    @property
    def names(self) -> list[str]:
        """All that can be asked for."""
        with self._lock:
            return sorted(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def source(self, name: str) -> str:
        """The run folder of an adapter, below `folder`. Raises Unknown."""
        with self._lock:
            if name not in self._places:
                raise Unknown(name)
            return self._places[name].source

    def held(self, name: str) -> Adapter | None:
        """An adapter that is in memory."""
        return self._held.get(name)

    def get(self, name: str) -> Adapter:
        """An adapter, from memory or from disk; whoever asks for one that is being read waits for it.

        Raises Unknown, and UserError for one that cannot be read any more.
        """
        with self._lock:
            place = self._places.get(name)
            if place is None:
                raise Unknown(name)
            if (adapter := self._held.get(name)) is not None:
                self._held.move_to_end(name)
                self.hits[name] += 1
                return adapter
            own = (name, place) not in self._coming
            coming = self._coming.setdefault((name, place), Future())
        if own:
            self._fetch(name, place, coming)
        return coming.result()

    def _fetch(self, name: str, place: Place, coming: Future[Adapter]) -> None:
        try:
            if self._stamp(place.source) != place.stamp:
                raise UserError(f"adapter {name}: its folder {place.source} has changed: PUT /adapters/{name} takes it in as it is now")
            adapter = self._read(name, place)
            with self._lock:
                if self._places.get(name) == place:
                    self._hold(name, adapter)
            coming.set_result(adapter)
        except BaseException as error:
            coming.set_exception(error)
        finally:
            with self._lock:
                self._coming.pop((name, place), None)

    def _read(self, name: str, place: Place) -> Adapter:
        """From disk. Raises UserError where it does not fit, or changes meanwhile."""
        adapter = self._load(name, self._path(place.source))
        if self._stamp(place.source) != place.stamp:
            raise UserError(f"{place.source}: changed while it was read: try again once it is whole")
        self.loads[name] += 1
        return adapter

    def _hold(self, name: str, adapter: Adapter) -> None:
        self._held[name] = adapter
        self._held.move_to_end(name)
        while len(self._held) > self.memory:
            self._held.popitem(last=False)

    def put(self, name: str, source: str | None = None) -> Adapter:
        """Takes in a run of the folder under a name, in place of what had it. Requests that are under way are answered by the old one.

        Raises UserError for a name or a place that is none, and for a run that does not fit: then nothing changes.
        """
        if not NAME.fullmatch(name):
            raise UserError(f"adapter {name[:100]!r}: expected a name of at most 100 letters, digits, '.', '_' and '-'")
        source = source or self._sources.get(name, name)
        with self._changes:  # one after another, so that the last to come is the last to stay
            place = Place(source, self._stamp(source))
            adapter = self._read(name, place)
            with self._lock:
                self._places[name] = place
                self._hold(name, adapter)
            self._sources[name] = source
            self._removed.discard(name)
            self._write_state()
        return adapter

    def remove(self, name: str) -> None:
        """Takes an adapter off; its folder stays. Raises Unknown."""
        with self._changes:
            with self._lock:
                if self._places.pop(name, None) is None:
                    raise Unknown(name)
                self._held.pop(name, None)
            self._sources.pop(name, None)
            self._removed.add(name)
            self._write_state()

    def _path(self, source: str) -> Path:
        """A run folder below the folder. Raises UserError for one that is not."""
        path = self.folder / source
        if not source.isprintable() or Path(source).is_absolute() or ".." in Path(source).parts or not path.is_dir():
            raise UserError(f"{source[:200]!r}: expected a run folder below {self.folder}")
        return path

    def _stamp(self, source: str) -> tuple[Any, ...]:
        path = self._path(source)
        return tuple((name, *stamp_of(path / name)) for name in folder_kind(path).files if (path / name).exists())

    def _on_disk(self) -> Iterator[tuple[str, str]]:
        """Names and run folders: the subfolders', and what was put under other names."""
        found = {path.name: path.name for path in adapters_in(self.folder)}
        for name, source in (found | self._sources).items():
            if name not in self._removed and NAME.fullmatch(name):
                yield name, source

    def _read_state(self) -> tuple[dict[str, str], set[str]]:
        path = self.folder / STATE
        if not path.is_file():
            return {}, set()
        said = read_object(path, ": remove it, and the folder's own runs are served")
        sources, removed = said.get("sources", {}), said.get("removed", [])
        if (
            not isinstance(sources, dict)
            or not isinstance(removed, list)
            or not all(isinstance(v, str) for v in [*sources.values(), *removed])
        ):
            raise UserError(f"{path}: not as this server writes it: remove it, and the folder's own runs are served")
        return sources, set(removed)

    def _write_state(self) -> None:
        write_json(self.folder / STATE, {"sources": self._sources, "removed": sorted(self._removed)})


def parse_source(body: bytes) -> str | None:
    """The run folder that the body of a PUT names, `{"from": "folder"}`; None for an empty one. Raises UserError for another."""
    if not body.strip():
        return None
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or set(said) != {"from"} or not isinstance(said["from"], str):
        raise UserError('expected no body, or {"from": "a run folder below the server\'s"}')
    return said["from"]
