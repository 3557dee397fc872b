"""The parts of the report that show single faces: what was predicted of them, and the hardest ones."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from markupsafe import Markup

from jaxface.data.tasks import Task, known
from jaxface.evaluation.measures import measure_of
from jaxface.evaluation.predictions import Predictions
from jaxface.evaluation.results import hardest_of
from jaxface.plots import to_data_uri
from jaxface.report.markup import Cell, left, percent, render
from jaxface.report.sections.base import Runs
from jaxface.runs.folder import Run

FACES = 16
"""How many faces the page shows of each run, right or wrong as they come, and how many wrong ones."""


def _thumbnails(run: Run) -> Callable[[str], str | None]:
    """The address of a record's face; None if the run kept none of it."""
    faces = {**run.faces, **run.hardest}

    def image(record: str) -> str | None:
        if record not in faces:
            return None
        data = cv2.imencode(".jpg", faces[record][..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()
        return to_data_uri(data, "image/jpeg")

    return image


def faces(runs: Runs) -> Markup:
    """The first faces of the test set with what was predicted of them, and further ones that are wrong."""
    shown = {}
    for name, run in runs.items():
        predictions = run.predictions
        if predictions is None or not run.faces:
            continue
        rows = [row for row, record in enumerate(predictions.id) if record in run.faces]
        first = rows[:FACES]
        wrong = [row for row in rows if row not in first and any(_is_right(predictions, task, row) is False for task in run.tasks)]
        shown[name] = {
            "first": [_card(run, predictions, row) for row in first],
            "wrong": [_card(run, predictions, row) for row in wrong[:FACES]],
        }
    return render("faces.html", runs=shown) if shown else Markup()


def _is_right(predictions: Predictions, task: Task, row: int) -> bool | None:
    one = predictions.rows(np.array([row]), [task])
    return bool(one.right(task)[0]) if known(one.labels[task.name])[0] else None


def _card(run: Run, predictions: Predictions, row: int) -> dict[str, object]:
    """A face: its picture, and per task what was predicted, with which probability, whether that is right, and the label."""
    lines = []
    for task in run.tasks:
        one, right = predictions.rows(np.array([row]), [task]), _is_right(predictions, task, row)
        answer, label = (task.of.label_words(task, values[0]) for values in (one.predicted(task.name), one.labels[task.name]))
        probability = f"{100 * one.shares(task)[0].max():.0f}" if measure_of(task).confuses else ""
        lines.append((answer, probability, right, None if right is None else label))
    return {"image": _thumbnails(run)(predictions.id[row]), "lines": lines}


def hardest(runs: Runs) -> Markup:
    """The wrong answers that give the label the least probability."""
    shown = {}
    for name, run in runs.items():
        found = [mistake for task in run.tasks for mistake in hardest_of(run.predictions, task)]
        if not found:
            continue
        image = _thumbnails(run)
        pictures = any(image(record) for _, record, *_ in found)
        rows = [
            [record, *([Cell(_image(image(record)), sort="")] if pictures else []), *map(left, (task, label, answer)), _given(probability)]
            for probability, record, task, label, answer in found
        ]
        header = ["record", *(["face"] if pictures else []), *map(left, ("task", "label", "predicted")), "probability of the label"]
        shown[name] = header, rows
    return render("hardest.html", runs=shown, last=list(runs)[-1]) if shown else Markup()


def _given(value: float) -> str:
    """What an answer gives its label: a probability, or how far off a number is."""
    return percent(value) if value >= 0 else f"off by {-value:.3g}"


def _image(address: str | None) -> Markup:
    return Markup('<img alt="" src="{}">').format(address) if address else Markup()
