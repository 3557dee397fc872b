"""A queue of several lines that are served in turn."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable
from queue import Empty
from typing import Generic, TypeVar

__all__ = ["Empty", "FairQueue"]
Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """What is put into a line comes out in its order; the lines that something waits in take turns. Any thread may call it."""

    def __init__(self) -> None:
        self._lines: dict[Hashable, deque[Item]] = {}  # whose turn it is stands first
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: Item, line: Hashable = None) -> None:
        """Adds an item at a line's end."""
        with self._changed:
            self._lines.setdefault(line, deque()).append(item)
            self._changed.notify()

    def get(self, block: bool = True) -> Item | None:
        """The next item; None once all are out of a queue that was closed. Raises Empty where there is none yet and it shall not wait."""
        with self._changed:
            while not self._lines:
                if self._closed:
                    return None
                if not block:
                    raise Empty
                self._changed.wait()
            line = next(iter(self._lines))
            items = self._lines.pop(line)
            item = items.popleft()
            if items:
                self._lines[line] = items
            return item

    def close(self) -> None:
        """Nothing more is put."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
