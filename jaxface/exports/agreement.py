"""What a rounded model is fitted to and held against: a run's validation records, and how far its answers agree with float32's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from jaxface.data.tasks import Task, known
from jaxface.errors import UserError
from jaxface.evaluation.measures import measure_of
from jaxface.evaluation.metrics import probabilities, reliability
from jaxface.exports.exporter import Answer, Logits
from jaxface.progress import Track
from jaxface.runs.model import Trained

SPLIT = "validation"


def records_of(trained: Trained, most: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Some validation images of the run, `most` at most, uint8 [N, S, S, 3], and their labels. Raises UserError for fewer than three."""
    from jaxface.data.framing import resize
    from jaxface.data.images import Unreadable, decode
    from jaxface.data.pipeline import Joined
    from jaxface.runs.data import sets_of_run

    try:
        records = Joined(sets_of_run(trained.config, trained.folder), SPLIT, trained.config.tasks)
    except UserError as error:
        raise UserError(f"int8 takes its scales from the run's validation records: {error} (--data FOLDER names others)") from None
    order = np.random.default_rng(0).permutation(len(records))[:most]
    images, kept = [], []
    for index in map(int, order):
        with suppress(Unreadable):
            images.append(resize(decode(records[index]["image"]), trained.image_size, framing=trained.framing))
            kept.append(index)
    if len(images) < 3:
        raise UserError(f"int8 takes its scales from validation records: {len(images)} can be read, expected 3 at least")
    return np.stack(images), {task: labels[kept] for task, labels in records.labels.items()}


def answers(answer: Answer, images: np.ndarray, title: str) -> dict[str, np.ndarray]:
    """The logits [N, C] of all images, some at a time."""
    parts = []
    with Track(title, len(images), unit="images") as track:
        for start in range(0, len(images), 8):
            parts.append(answer(images[start : start + 8]))
            track.advance(len(images[start : start + 8]))
    return {task: np.concatenate([part[task] for part in parts]) for task in parts[0]}


def changes(tasks: Sequence[Task], found: Logits, expected: Logits) -> np.ndarray:
    """How much each task's probabilities change, of the class or label where it is most, in the mean over images; of a number as it is, the
    share of four of its standard deviations, its range about."""
    pairs = [(task, *(task.of.shares(task, logits[task.name]) for logits in (found, expected))) for task in tasks]
    return np.array([np.abs(ours - exact).max(-1).mean() / (1.0 if task.classes else 4 * task.scale) for task, ours, exact in pairs])


def agreement_of(tasks: Sequence[Task], labels: Mapping[str, np.ndarray], ours: Logits, exact: Logits) -> dict[str, Any]:
    """What int8 changes, per task: the share of the same class, and of both models (int8, float32) the accuracy and calibration error."""
    result = {}
    for task in tasks:
        pair, truth = (ours[task.name], exact[task.name]), labels[task.name]
        there = known(truth)
        said: dict[str, Any] = {"same_class": float(task.of.right(task, pair[0], task.of.decided(task, pair[1])).mean())}
        said["change"] = float(changes([task], ours, exact)[0])
        if there.any():
            said["accuracy"] = [float(task.of.right(task, logits, truth)[there].mean()) for logits in pair]
        if there.any() and measure_of(task).confuses:
            said["calibration_error"] = [reliability(probabilities(logits), truth).calibration_error for logits in pair]
        result[task.name] = said
    return result
