"""What comes in kinds stands in a registry: a method, a kernel, a task, a loss is one entry under its name, a user's own one more."""

from __future__ import annotations

import difflib
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, ValuesView
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from jaxface.errors import UserError

T = TypeVar("T")
F = TypeVar("F")


MOST = 500
"""Characters of known names in a message."""


def require_known(kind: str, names: Iterable[str], known: Iterable[str], others: str = "") -> None:
    """Raises UserError at the first name that is not known: it lists those that are, and the one that was likely meant.

    Args:
      others: what else is taken, as "or full".
    """
    known = {name.lower(): name for name in known}
    for name in names:
        if name not in known.values():
            nearest = difflib.get_close_matches(str(name).lower(), known, 1)
            hint = f" (nearest: {known[nearest[0]]})" if nearest else ""
            words, listed = [*known.values(), *filter(None, [others])], 0
            while listed < len(words) and sum(map(len, words[: listed + 1])) < MOST:
                listed += 1
            more = f" and {len(words) - listed} more" if listed < len(words) else ""
            raise UserError(f"no {kind} {name!r}; known: {', '.join(words[:listed])}{more}{hint}")


class Registry(Generic[T]):
    """Entries of one kind by their names, in the order in which they were registered.

    ENGINES: Registry[Engine] = Registry("engine")

    @ENGINES.register("local")
    def local(shards, workers, done): ...

    ENGINES.get("local")

    Attributes:
      added: entries that were ever added to any registry: whether a file has registered something.
    """

    added = 0

    def __init__(self, kind: str, entries: Mapping[str, T] | None = None, *, others: str = "") -> None:
        """
        Args:
          kind: what messages call an entry.
          entries: what is known from the start.
          others: what a caller takes besides names, for messages.
        """
        self.kind, self.others = kind, others
        self._entries: dict[str, T] = dict(entries or {})

    def add(self, name: str, entry: T) -> T:
        """Makes an entry known by its name, as the latest, in place of any other of that name."""
        self._entries.pop(name, None)
        self._entries[name] = entry
        Registry.added += 1
        return entry

    def register(self, name: str) -> Callable[[F], F]:
        """Decorator that makes what stands below it known by its name."""

        def decorate(entry: F) -> F:
            added: Any = entry  # the type of what is decorated stays its own: a class remains that class
            self.add(name, added)
            return entry

        return decorate

    def get(self, name: str) -> T:
        """The entry of that name. Raises UserError that lists the known ones and the nearest."""
        require_known(self.kind, [name], self, self.others)
        return self._entries[name]

    __getitem__ = get

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def items(self) -> ItemsView[str, T]:
        """Names and entries."""
        return self._entries.items()

    def values(self) -> ValuesView[T]:
        """The entries."""
        return self._entries.values()

    @contextmanager
    def temporarily(self) -> Iterator[None]:
        """What is registered within is forgotten at the end."""
        before = dict(self._entries)
        try:
            yield
        finally:
            self._entries = before
