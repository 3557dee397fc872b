"""Requests that come one by one, answered in batches: a thread gathers the faces that wait while the device is busy with others."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from jaxface.prediction.fair_queue import Empty, FairQueue
from jaxface.prediction.predictor import Json

Request = tuple[Sequence[Any], Future[list[Json]], float]
"""What is asked about, where the answers go, and when it came."""
Results = list[tuple[Any, int]]


class Model(Protocol):
    """A `Predictor`, whose pieces are crops, or an `AdapterServer`, whose pieces are crops with an adapter each."""

    batch_size: int

    def classify(self, pieces: Sequence[Any], /) -> Any: ...

    def answers(self, results: Any, count: int, /) -> list[Json]: ...


class Batcher:
    """Answers pieces of many callers with few calls of the model. `close` ends its thread.

    Args:
      note: told of each batch how many pieces are in it, and the seconds that the first of them waited.
    """

    def __init__(self, predictor: Model, note: Callable[[int, float], object] = lambda count, seconds: None) -> None:
        self.predictor, self._note = predictor, note
        self.batches, self.faces = 0, 0
        self._requests: FairQueue[Request] = FairQueue()
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, pieces: Sequence[Any], line: Hashable = None) -> Future[list[Json]]:
        """The answers for one caller's pieces, in their order.

        Args:
          line: where it waits; lines are served in turn, so that a long one does not hold up the others.
        """
        future: Future[list[Json]] = Future()
        if pieces:
            self._requests.put((pieces, future, time.perf_counter()), line)
        else:
            future.set_result([])
        return future

    def close(self) -> None:
        """Answers what was asked and ends the thread."""
        self._requests.close()
        self._thread.join()

    def _work(self) -> None:
        computing: deque[tuple[Results, list[Request]]] = deque()
        open_ = True
        while open_ or computing:
            asked: list[Request] = []
            try:  # with a batch on the device there is no hurry; without one the first request is waited for
                request = self._requests.get(block=not computing)
                while request is not None:
                    asked.append(request)
                    if sum(len(pieces) for pieces, *_ in asked) >= self.predictor.batch_size:
                        break
                    request = self._requests.get(block=False)
                open_ = open_ and request is not None
            except Empty:
                pass
            if asked:
                self._start(asked, computing)
            while computing and (len(computing) > 1 or not asked):
                self._finish(*computing.popleft())

    def _start(self, asked: list[Request], computing: deque[tuple[Results, list[Request]]]) -> None:
        """Gives all pieces to the device, in as many batches as they need; a caller gets all of its answers at once."""
        asked = [request for request in asked if request[1].set_running_or_notify_cancel()]  # whose caller has gone is not answered
        pieces = [piece for own, *_ in asked for piece in own]
        size = self.predictor.batch_size
        parts = [pieces[start : start + size] for start in range(0, len(pieces), size)]
        try:
            computing.append(([(self.predictor.classify(part), len(part)) for part in parts], asked))
            self.batches += len(parts)
            self.faces += len(pieces)
            if asked:
                self._note(len(pieces), time.perf_counter() - min(came for *_, came in asked))
        except Exception as error:
            self._alone(asked, error)

    def _finish(self, results: Results, asked: list[Request]) -> None:
        try:
            answers = [answer for found, count in results for answer in self.predictor.answers(found, count)]
        except Exception as error:
            self._alone(asked, error)
            return
        left = iter(answers)
        for pieces, future, _ in asked:
            future.set_result([next(left) for _ in pieces])

    def _alone(self, asked: list[Request], error: Exception) -> None:
        """After a failure each request is answered by itself, so that one caller's fault is not its neighbours'."""
        for pieces, future, _ in asked:
            try:
                if len(asked) == 1:
                    raise error
                size = self.predictor.batch_size
                parts = [pieces[start : start + size] for start in range(0, len(pieces), size)]
                future.set_result([row for part in parts for row in self.predictor.answers(self.predictor.classify(part), len(part))])
            except Exception as own:
                future.set_exception(own)
