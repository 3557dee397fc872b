"""Requests that come one by one, answered in batches: a thread gathers the faces that wait while the device is busy with others."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from jaxface.prediction.predictor import Json, Predictor

Request = tuple[Sequence[np.ndarray], Future[list[Json]]]
Results = list[tuple[Mapping[str, Any], int]]


class Batcher:
    """Answers crops of many callers with few calls of the model. `close` ends its thread."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.batches, self.faces = 0, 0
        self._requests: queue.Queue[Request | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, crops: Sequence[np.ndarray]) -> Future[list[Json]]:
        """The answers for one caller's crops, in their order."""
        future: Future[list[Json]] = Future()
        if crops:
            self._requests.put((crops, future))
        else:
            future.set_result([])
        return future

    def close(self) -> None:
        """Answers what was asked and ends the thread."""
        self._requests.put(None)
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
                    if sum(len(crops) for crops, _ in asked) >= self.predictor.batch_size:
                        break
                    request = self._requests.get(block=False)
                open_ = open_ and request is not None
            except queue.Empty:
                pass
            if asked:
                self._start(asked, computing)
            while computing and (len(computing) > 1 or not asked):
                self._finish(*computing.popleft())

    def _start(self, asked: list[Request], computing: deque[tuple[Results, list[Request]]]) -> None:
        """Gives all crops to the device, in as many batches as they need; a caller gets all of its answers at once."""
        asked = [request for request in asked if request[1].set_running_or_notify_cancel()]  # whose caller has gone is not answered
        pieces = [crop for crops, _ in asked for crop in crops]
        size = self.predictor.batch_size
        parts = [pieces[start : start + size] for start in range(0, len(pieces), size)]
        try:
            computing.append(([(self.predictor.classify(part), len(part)) for part in parts], asked))
            self.batches += len(parts)
            self.faces += len(pieces)
        except Exception as error:
            self._alone(asked, error)

    def _finish(self, results: Results, asked: list[Request]) -> None:
        try:
            answers = [answer for logits, count in results for answer in self.predictor.answers(logits, count)]
        except Exception as error:
            self._alone(asked, error)
            return
        left = iter(answers)
        for crops, future in asked:
            future.set_result([next(left) for _ in crops])

    def _alone(self, asked: list[Request], error: Exception) -> None:
        """After a failure each request is answered by itself, so that one caller's fault is not its neighbours'."""
        for crops, future in asked:
            try:
                if len(asked) == 1:
                    raise error
                size = self.predictor.batch_size
                parts = [crops[start : start + size] for start in range(0, len(crops), size)]
                future.set_result([row for part in parts for row in self.predictor.answers(self.predictor.classify(part), len(part))])
            except Exception as own:
                future.set_exception(own)
