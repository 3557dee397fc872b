"""The parts of the report that show single faces: what was predicted of them, and the hardest ones."""

from __future__ import annotations

from collections.abc import Callable

import cv2

from jaxface.data.tasks import MISSING, Task
from jaxface.evaluation import metrics
from jaxface.evaluation.predictions import Predictions
from jaxface.evaluation.results import hardest_of
from jaxface.report import figures
from jaxface.report.markup import Cell, Html, details, grid, join, percent, table, tag
from jaxface.report.sections import Runs
from jaxface.runs.folder import Run

FACES, HARDEST = 16, 5
"""How many faces the page shows of each run, right or wrong as they come and wrong ones, and how many of the hardest of each task."""


def _thumbnails(run: Run) -> Callable[[str], Html]:
    faces = {**run.faces, **run.hardest}

    def image(record: str) -> Html:
        if record not in faces:
            return Html()
        data = cv2.imencode(".jpg", faces[record][..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()
        return Html(f'<img alt="" src="{figures.to_data_uri(data, "image/jpeg")}">')

    return image


def faces(runs: Runs) -> Html:
    shown = [(name, run) for name, run in runs.items() if run.predictions is not None and run.faces]
    parts = []
    for index, (name, run) in enumerate(shown):
        rows = [row for row, record in enumerate(run.predictions.id) if record in run.faces]
        wrong = [row for row in rows if any(_is_right(run.predictions, task, row) is False for task in run.tasks)]
        some = rows[:FACES]
        others = [row for row in wrong if row not in some][:FACES]
        content = [tag("p", "The first of the test set, not selected:"), grid((_card(run, row) for row in some), "cards")]
        content += [tag("p", "Further ones that it gets wrong:"), grid((_card(run, row) for row in others), "cards")] if others else []
        parts.append(details(name, *content, opened=index == len(shown) - 1) if len(shown) > 1 else join(content))
    return join(parts)


def _is_right(predictions: Predictions, task: Task, row: int) -> bool | None:
    label = predictions.labels[task.name][row]
    return None if label == MISSING else bool(label == predictions.logits[task.name][row].argmax())


def _card(run: Run, row: int) -> Html:
    lines = []
    for task in run.tasks:
        logits = run.predictions.logits[task.name][row]
        probability, name = metrics.probabilities(logits[None])[0].max(), task.classes[logits.argmax()]
        right = _is_right(run.predictions, task, row)
        mark, class_ = {None: ("·", None), True: ("✓", "right"), False: ("✗", "wrong")}[right]
        label = "" if right is not False else tag("div", f"label: {task.classes[run.predictions.labels[task.name][row]]}")
        lines.append(
            tag("li", tag("b", f"{mark} {name}", class_=class_), tag("span", f"{100 * probability:.0f}\N{NARROW NO-BREAK SPACE}%"), label)
        )
    return tag("div", _thumbnails(run)(run.predictions.id[row]), tag("ul", *lines), class_="face")


def hardest(runs: Runs) -> Html:
    parts = []
    for name, run in runs.items():
        found = [mistake for task in run.tasks for mistake in hardest_of(run.predictions, task)]
        image = _thumbnails(run)
        pictures = any(record in run.faces or record in run.hardest for _, record, *_ in found)
        rows = [
            [
                record,
                *([Cell(image(record), sort="")] if pictures else []),
                *(Cell(value, class_="left") for value in (task, label, answer)),
                percent(probability),
            ]
            for probability, record, task, label, answer in found
        ]
        if rows:
            left = [Cell(word, class_="left") for word in ("task", "label", "predicted")]
            header = ["record", *(["face"] if pictures else []), *left, "probability of the label"]
            parts.append(details(name, table(header, rows), opened=name == list(runs)[-1]))
    text = "Wrong answers in which the model gave the label the least probability: the model's errors, or the labels'."
    return join([tag("p", text), *parts]) if parts else Html()
