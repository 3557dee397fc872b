"""From images to results, in their order: threads read and crop ahead while the device computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from jaxface.data.images import Unreadable
from jaxface.data.videos import End
from jaxface.launchers import cpu_count
from jaxface.prediction.items import Item
from jaxface.prediction.predictor import Json, Photo, Predictor, face_json

OK, NO_FACE, DAMAGED, UNREADABLE = "ok", "no face", "damaged", "unreadable"
WHOLE, BROKEN_OFF = "whole video", "broken-off video"
"""Of a video's last row."""
IN_FLIGHT = 3
"""Batches on the device at once."""
COLUMNS = ("path", "frame", "seconds", "frames", "status", "error", "width", "height", "faces")
"""Of a result, in their order."""
Finish = Callable[[Item, Json], None]


@dataclass
class Answer:
    """An item on its way.

    Attributes:
      item: what it is.
      result: what is known of it; None for a frame behind a video's end, of which nothing is said.
      waiting: faces that the model has not seen yet.
    """

    item: Item
    result: Json | None
    crops: list[np.ndarray] = field(default_factory=list)
    waiting: int = 0


def look(predictor: Predictor, item: Item) -> Answer:
    """Reads an item and finds its faces. Whatever is wrong with it becomes its status."""
    result: Json = dict.fromkeys(COLUMNS) | {"path": item.path, "status": OK, "faces": []}
    try:
        image = item.load(predictor.least) if predictor.options.reduced else item.load()
        if image is None:
            return Answer(item, None)
        if isinstance(image, End):
            status = BROKEN_OFF if image.broken else WHOLE
            return Answer(item, result | {"status": status, "error": image.broken or None, "frames": image.frames})
        if item.video is not None:
            result |= {"frame": image.number, "seconds": None if image.seconds is None else round(image.seconds, 6)}
        result["error"] = image.damage or None
        if image.damage and predictor.options.damaged == "drop":
            return Answer(item, result | {"status": DAMAGED})
        pixels: Any = image.pixels  # those of an item were asked for
        photo: Photo | None = predictor.find(pixels) if image.size is None else predictor.find(pixels, image.size)
        if photo is None:  # of more pixels than were decoded
            whole: Any = item.load()
            photo = predictor.find(whole.pixels)
    except Unreadable as error:
        return Answer(item, result | {"status": UNREADABLE, "error": str(error)})
    except Exception as error:  # of a detector, say: no file ends the job
        return Answer(item, result | {"status": UNREADABLE, "error": f"{type(error).__name__}: {' '.join(str(error).split())}"})
    result |= {"width": photo.width, "height": photo.height, "faces": [face_json(face) for face in photo.faces]}
    result["status"] = DAMAGED if image.damage else OK if photo.faces else NO_FACE
    return Answer(item, result, photo.crops, len(photo.crops))


def predict_stream(
    predictor: Predictor, items: Iterable[Item], *, threads: int | None = None, finish: Finish | None = None
) -> Iterator[Json]:
    """One result an item, in the items' order: `COLUMNS`, and the faces as `Predictor` gives them.

    Of a video there is one a frame, and one at its end that says how many `frames` it gave.

    Nothing that is wrong with an image ends the stream.

    Args:
      items: what to look at.
      threads: that read, find faces and finish.
      finish: called in a thread with every item and its result before the result is given (to draw it).
    """
    threads = threads or cpu_count()
    stream = _Stream(predictor, threads)
    with ThreadPoolExecutor(threads) as pool:
        finished: deque[tuple[Any, Future[None] | None]] = deque()
        for answer in stream.answers(pool, iter(items)):
            finished.append((answer.result, pool.submit(finish, answer.item, answer.result) if finish and answer.result else None))
            while finished and (len(finished) > 2 * threads or finished[0][1] is None or finished[0][1].done()):
                yield _wait(*finished.popleft())
        while finished:
            yield _wait(*finished.popleft())


def _wait(result: Json, future: Future[None] | None) -> Json:
    if future is not None:
        future.result()
    return result


class _Stream:
    """What is under way: items being read, answers that wait for the model, one batch on the device while the next one is gathered."""

    def __init__(self, predictor: Predictor, threads: int) -> None:
        self.predictor, self.ahead = predictor, 3 * predictor.batch_size + 2 * threads
        self.step, self.most_crops = 4 * threads, 8 * predictor.batch_size
        self.waiting: deque[Answer] = deque()
        self.gathered: list[tuple[Answer, int, np.ndarray]] = []
        self.computing: deque[tuple[Mapping[str, Any], list[tuple[Answer, int]]]] = deque()

    def answers(self, pool: ThreadPoolExecutor, items: Iterator[Item]) -> Iterator[Answer]:
        """Whole answers in the order of the items."""
        reading: deque[Future[Answer]] = deque()

        def refill() -> None:
            """Lets the threads read a little farther ahead, unless what they have read holds many crops already: crowds fill memory."""
            crops = sum(len(future.result().crops) for future in reading if future.done())
            more = 0 if crops > self.most_crops else min(self.step, self.ahead - len(reading))
            reading.extend(pool.submit(look, self.predictor, item) for item in islice(items, more))

        try:
            refill()
            while reading:
                self._take(reading.popleft().result())
                refill()
                yield from self._whole()
            self._start()
            while self.computing:
                self._collect()
            yield from self._whole()
        finally:
            for future in reading:
                future.cancel()

    def _take(self, answer: Answer) -> None:
        if answer.result is None:
            return
        self.waiting.append(answer)
        for index, crop in enumerate(answer.crops):
            self.gathered.append((answer, index, crop))
            if len(self.gathered) == self.predictor.batch_size:
                self._start()
        answer.crops = []

    def _start(self) -> None:
        """Gives the gathered faces to the device, and waits for earlier ones only then, so that the device is never without work."""
        if self.gathered:
            logits = self.predictor.classify([crop for *_, crop in self.gathered])
            self.computing.append((logits, [(answer, index) for answer, index, _ in self.gathered]))
            self.gathered = []
        while len(self.computing) >= IN_FLIGHT:
            self._collect()

    def _collect(self) -> None:
        logits, places = self.computing.popleft()
        for (answer, index), attributes in zip(places, self.predictor.answers(logits, len(places)), strict=True):
            answer.result["faces"][index] |= attributes
            answer.waiting -= 1

    def _whole(self) -> Iterator[Answer]:
        while self.waiting and self.waiting[0].waiting == 0:
            yield self.waiting.popleft()
