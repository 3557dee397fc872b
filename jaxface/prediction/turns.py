"""Who works next: so many at once, and of those that wait whoever has the least to do."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count


class Turns:
    """Places for work of one event loop: a small task never waits for the many large ones before it.

    Attributes:
      places: how many work at once.
    """

    def __init__(self, places: int) -> None:
        self.places = self._free = places
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._number = count()

    @asynccontextmanager
    async def turn(self, work: float) -> AsyncIterator[None]:
        """A place, once one is free and nobody waits who has less to do (or as much, and came earlier)."""
        if self._free:
            self._free -= 1
        else:
            place = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (work, next(self._number), place))
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():  # it was given in the same moment
                    self._give()
                raise
        try:
            yield
        finally:
            self._give()

    def _give(self) -> None:
        """The place to whoever is next."""
        while self._waiting:
            *_, place = heapq.heappop(self._waiting)
            if not place.done():
                place.set_result(None)
                return
        self._free += 1
