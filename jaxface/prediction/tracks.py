"""Faces followed through a video: one track per person on screen, by where faces are, and one answer per track, pooled over its frames.

Nothing is compared but boxes: a person who leaves and comes back is another track.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from jaxface.data.cropping import overlap
from jaxface.data.task_files import tasks_told
from jaxface.data.tasks import Task

Json = dict[str, Any]
PATIENCE = 1.0
"""Seconds that a face may be unseen."""
LEAST = 0.2
"""Affinity below which two boxes are of two faces."""
RATE = 25.0
"""Frames a second, of a video without times."""


def affinity(a: np.ndarray, b: np.ndarray) -> float:
    """How likely two boxes x0, y0, x1, y1 are of one face: their overlap, and half of how near their centres are in sides of a box."""
    side = max(float(np.sqrt(np.prod(a[2:] - a[:2]) * 1.0)), 1.0)
    distance = float(np.linalg.norm((a[:2] + a[2:]) / 2 - (b[:2] + b[2:]) / 2)) / side
    return overlap(tuple(a), tuple(b)) + 0.5 * max(0.0, 1 - distance)


@dataclass
class Track:
    """One face through a video.

    Attributes:
      number: in the order in which they appear.
      box, velocity, seen: where it was last, its speed in pixels a second, and when.
      first: when it appeared.
      best: its box and score where the detector was most certain.
      weight, shares, calibrated: sums over its frames, by the detector's certainty, of that and of each task's probabilities.
    """

    number: int
    box: np.ndarray
    seen: float
    first: float
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(4))
    frames: int = 0
    best: tuple[float, list[float]] = (-1.0, [])
    weight: float = 0.0
    shares: dict[str, np.ndarray] = field(default_factory=dict)
    calibrated: dict[str, np.ndarray] = field(default_factory=dict)

    def expected(self, time: float) -> np.ndarray:
        """Where it should be by now."""
        return self.box + self.velocity * (time - self.seen)

    def add(self, face: Json, time: float, temperatures: Mapping[str, float], tasks: Mapping[str, Task]) -> None:
        """Takes a further frame's face."""
        box = np.array(face["box"], float)
        if self.frames and time > self.seen:
            self.velocity = 0.5 * self.velocity + 0.5 * (box - self.box) / (time - self.seen)
        self.box, self.seen, self.frames = box, time, self.frames + 1
        weight = max(face["score"], 1e-3)
        self.weight += weight
        self.best = max(self.best, (face["score"], face["box"]))
        for name, task in tasks.items():
            shares = task.of.row(task, face[name])
            flat = task.of.tempered(task, shares, temperatures.get(name, 1.0))
            self.shares[name] = self.shares.get(name, 0.0) + weight * shares
            self.calibrated[name] = self.calibrated.get(name, 0.0) + weight * flat

    def answer(self, tasks: Mapping[str, Task]) -> Json:
        """What the model says of the face: the mean of its probabilities over the frames, weighted by the detector's certainty."""
        score, box = self.best
        about: Json = {"box": box, "score": score, "track": self.number, "track_frames": self.frames}
        about |= {"track_start": round(self.first, 6), "track_end": round(self.seen, 6)}
        for name, task in tasks.items():
            about[name] = task.of.answer(task, self.shares[name] / self.weight, self.calibrated[name] / self.weight)
        return about


class Tracker:
    """The tracks of one video; its frames come in order.

    Args:
      tasks: by name.
      temperatures: of each task that has one.
    """

    def __init__(self, tasks: Mapping[str, Task], temperatures: Mapping[str, float]) -> None:
        self.known, self.temperatures = tasks, temperatures
        self.tracks: list[Track] = []

    def add(self, row: Json) -> None:
        """Gives each face of a frame its `track`."""
        time = row["frame"] / RATE if row["seconds"] is None else row["seconds"]
        live = [track for track in self.tracks if time - track.seen <= PATIENCE]
        boxes = [np.array(face["box"], float) for face in row["faces"]]
        table = np.array([[affinity(track.expected(time), box) for box in boxes] for track in live]).reshape(len(live), len(boxes))
        pairs = {face: live[i] for i, face in zip(*linear_sum_assignment(-table), strict=True) if table[i, face] >= LEAST}
        for index, face in enumerate(row["faces"]):
            track = pairs.get(index)
            if track is None:
                track = Track(len(self.tracks), boxes[index], time, time)
                self.tracks.append(track)
            track.add(face, time, self.temperatures, self.known)
            face["track"] = track.number

    def answers(self) -> list[Json]:
        """One face a track, in the order of their appearance."""
        return [track.answer(self.known) for track in self.tracks]


def followed(results: Iterable[Json], about: Json, before: Iterable[Json] = ()) -> Iterator[Json]:
    """Results whose faces in videos have a `track`; a video's last result has the tracks as its faces.

    Args:
      about: what `Predictor.about` says.
      before: earlier results of the same job, in order.
    """
    trackers: dict[str, Tracker] = {}

    def follow(row: Json) -> None:
        if row["frame"] is not None:
            if row["path"] not in trackers:
                trackers[row["path"]] = Tracker(tasks_told(about["classes"], about.get("tasks", {})), about["temperatures"])
            trackers[row["path"]].add(row)
        elif row["path"] in trackers:
            row["faces"] = trackers.pop(row["path"]).answers()

    for row in before:
        follow(row)
    for row in results:
        follow(row)
        yield row
