"""The report: one self-contained HTML page that compares runs, from what their folders hold."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from jaxface.data.tasks import MISSING, Task
from jaxface.errors import UserError
from jaxface.evaluation import figures, metrics, tables
from jaxface.evaluation.markup import Cell, Html, details, figure, grid, join, page, percent, section, table, tag
from jaxface.evaluation.predictions import Predictions
from jaxface.evaluation.runs import Run, read_run

Runs = Mapping[str, Run]
"""Runs by the name that the page gives them."""

FACES, HARDEST = 18, 10
"""How many faces and how many of the hardest examples the page shows of each run."""


def write_report(runs: Sequence[Path | str], out: Path | str) -> Path:
    """Writes a page that compares run folders, and returns its path. What a folder does not hold is left out of the page.

    Raises:
      UserError: for a folder that is no run folder, or a file in one that cannot be read.
    """
    if not runs:
        raise UserError("no run to report on; name at least one run folder")
    out = Path(out)
    content = render(named([read_run(path) for path in runs]))
    aside = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(content, encoding="utf-8")
        aside.replace(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from None
    finally:
        aside.unlink(missing_ok=True)
    return out


def named(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by name; those that share one are told apart by their folder, and by a number if it is the same folder."""
    names = [run.name for run in runs]
    names = [f"{name} ({run.path})" if names.count(name) > 1 else name for name, run in zip(names, runs, strict=True)]
    return {
        name if names.index(name) == index else f"{name} #{index + 1}": run
        for index, (name, run) in enumerate(zip(names, runs, strict=True))
    }


def render(runs: Runs) -> str:
    """The whole page. A section is a function of the runs; one that finds nothing to show is left out."""
    return page(
        ", ".join(runs), _lead(runs), [(anchor, name, section(title, show(runs), anchor=anchor)) for anchor, name, title, show in SECTIONS]
    )


def _lead(runs: Runs) -> Html:
    def sentence(name: str, run: Run) -> Html:
        method, variant = run.option("method.name"), run.option("encoder.variant")
        what = " on ".join(str(part) for part in (method, variant) if part)
        return join([tag("strong", name), f" ({what})" if what else ""])

    return tag("p", f"{'Runs' if len(runs) > 1 else 'A run'}: ", join((sentence(*item) for item in runs.items()), ", "), ".")


def _tasks(runs: Runs) -> dict[str, Task]:
    return {task.name: task for run in runs.values() for task in run.tasks}


def _matrix(predictions: Predictions | None, task: Task) -> np.ndarray | None:
    """The confusion matrix, or None if there are no answers or labels."""
    if predictions is None or task.name not in predictions.labels or len(predictions) == 0:
        return None
    matrix = metrics.task_matrix(predictions, task)
    return matrix if matrix.sum() else None


# -- results


def _outcome(run: Run, task: Task) -> dict[str, float]:
    """The figures of one task that the run recorded, recomputed from the stored answers where there are any."""
    found: dict[str, float | None] = {}
    for when, predictions, split in (("before", run.before, "before"), ("after", run.predictions, "test")):
        matrix, row = _matrix(predictions, task), run.last(split)
        found[when] = row.get(f"accuracy/{task.name}") if matrix is None else float(metrics.accuracy(matrix))
        found[f"{when} balanced"] = (
            row.get(f"balanced_accuracy/{task.name}") if matrix is None else float(metrics.balanced_accuracy(matrix))
        )
        if matrix is not None:
            found["majority"] = float(metrics.majority_share(matrix))
            found["records"] = float(matrix.sum())
            if when == "after":
                found["low"], found["high"] = metrics.bootstrap_interval(matrix, metrics.accuracy)
                found |= {
                    key: value for key, value in metrics.evaluate_task(predictions, task).items() if key in ("macro_f1", "off_by_one")
                }
    for baseline, values in run.baselines.items():
        found[baseline] = values.get(task.name)
    return {key: value for key, value in found.items() if isinstance(value, int | float) and np.isfinite(value)}


def _results(runs: Runs) -> Html:
    outcomes = {(name, task): _outcome(run, run_task) for name, run in runs.items() for run_task in run.tasks for task in [run_task.name]}
    outcomes = {key: outcome for key, outcome in outcomes.items() if "after" in outcome or "before" in outcome}
    if not outcomes:
        return Html()
    pictures = []
    for name in runs:
        own = {task: outcome for (run, task), outcome in outcomes.items() if run == name}
        if own:
            pictures.append(_picture(figures.before_after(own, name), f"accuracy per task, {name}"))
    optional = {
        "majority": "majority class",
        "pixels": "linear on pixels",
        "macro_f1": "macro F1",
        "off_by_one": "within one class",
    }
    shown = {key: title for key, title in optional.items() if any(key in outcome for outcome in outcomes.values())}
    rows = [
        [
            name,
            Cell(task, class_="left"),
            _share(outcome.get("before")),
            Cell(percent(outcome.get("after")), class_="strong", bar=outcome.get("after")),
            _interval(outcome),
            _gain(outcome, "before", "after"),
            _share(outcome.get("before balanced")),
            Cell(percent(outcome.get("after balanced")), class_="strong"),
            *(_share(outcome.get(key)) for key in shown),
            f"{outcome['records']:,.0f}" if "records" in outcome else "—",
        ]
        for (name, task), outcome in outcomes.items()
    ]
    header = [
        "run",
        "task",
        "accuracy before",
        "accuracy",
        "95 % interval",
        "gain",
        "balanced before",
        "balanced",
        *shown.values(),
        "test records",
    ]
    text = (
        "Accuracy on the test records that carry a label. Balanced accuracy is the mean recall over the classes. "
        "The interval is a bootstrap over the test records; “before” is the model that the run started from."
    )
    return join([tag("p", text), grid(pictures, "wide"), table(header, rows)])


def _share(value: float | None) -> str:
    return percent(value)


def _interval(outcome: Mapping[str, float]) -> Cell:
    if "low" not in outcome:
        return Cell("—")
    return Cell(f"{100 * outcome['low']:.1f} to {100 * outcome['high']:.1f}", class_="quiet", sort=outcome["low"])


def _gain(outcome: Mapping[str, float], start: str, end: str) -> Cell:
    if start not in outcome or end not in outcome:
        return Cell("—")
    points = 100 * (outcome[end] - outcome[start])
    return Cell(f"{points:+.1f}", class_="right" if points > 0 else "wrong" if points < 0 else None, sort=points)


# -- what ran


def _setup(runs: Runs) -> Html:
    facts = {name: _facts(run) for name, run in runs.items()}
    names = dict.fromkeys(fact for values in facts.values() for fact in values)
    rows = [[fact, *(Cell(values.get(fact, "—"), class_="left wrap") for values in facts.values())] for fact in names]
    full = [
        details(f"Whole configuration of {name}", tag("pre", json.dumps(run.config, indent=2)), opened=False) for name, run in runs.items()
    ]
    return join([table(["", *facts], rows, sortable=False), *full])


def _facts(run: Run) -> dict[str, str]:
    drawn = run.option("data.drawn") or {}
    facts = {
        "method": run.option("method.name"),
        "encoder": run.option("encoder.variant"),
        "starting weights": run.option("encoder.weights"),
        "tasks": ", ".join(task.name for task in run.tasks),
        "data": ", ".join(run.option("data.sets") or ()) or (f"drawn faces, style {drawn.get('style')}" if drawn else None),
        "loss balancing": run.option("balancing"),
        "batch size": run.option("batch_size"),
        "seed": run.option("seed"),
    }
    if run.rows:
        steps = [row["step"] for row in run.rows]
        seconds = max((row.get("time") or 0 for row in run.rows), default=0)
        rates = run.series("train", "images_per_second")[1]
        facts |= {
            "steps": f"{max(steps):,.0f}",
            "epochs": next((str(row["epoch"]) for row in reversed(run.rows) if row.get("epoch") is not None), None),
            "time": f"{seconds // 60:.0f} min {seconds % 60:.0f} s" if seconds else None,
            "training images a second": f"{np.median(rates):,.0f}" if len(rates) else None,
        }
    facts |= dict(_flat(run.summary))
    return {name: str(value) for name, value in facts.items() if value not in (None, "", "None")}


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}: ")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
        elif isinstance(value, str):
            yield name, value


# -- training


def _training(runs: Runs) -> Html:
    parts = []
    for name, run in runs.items():
        tasks = [task.name for task in run.tasks]
        losses = {"": "Loss"} | {f"/{task}": f"Loss, {task}" for task in tasks}
        pictures = []
        for suffix, title in losses.items():
            train, validation = run.series("train", f"loss{suffix}"), run.series("validation", f"loss{suffix}")
            if len(train[0]) or len(validation[0]):
                pictures.append(_picture(figures.loss_curve(train, validation, title), f"{title}, {name}"))
        for split, key, title, draw in (
            ("validation", "accuracy", "Validation accuracy", figures.accuracy_curve),
            ("validation", "balanced_accuracy", "Validation balanced accuracy", figures.accuracy_curve),
            ("train", "weight", "Task weights", figures.weight_curve),
        ):
            series = {task: run.series(split, f"{key}/{task}") for task in tasks}
            series = {task: one for task, one in series.items() if len(one[0])}
            if series:
                pictures.append(_picture(draw(series, title), f"{title}, {name}"))
            if series and key == "weight" and run.option("balancing") == "uw":
                # uncertainty weighting weighs by exp(-s), s the log-variance
                series = {task: (steps, -np.log(np.maximum(values, 1e-30))) for task, (steps, values) in series.items()}
                pictures.append(_picture(figures.log_variance_curve(series), f"Log-variances, {name}"))
        if pictures:
            parts += [tag("h3", name), grid(pictures)]
    return join(parts)


def _picture(drawing: figures.Figure, label: str) -> Html:
    return figure(Html(figures.to_svg(drawing, label)))


# -- classes


def _classes(runs: Runs) -> Html:
    return join(_classes_of(runs, task) for task in _tasks(runs).values())


def _classes_of(runs: Runs, task: Task) -> Html:
    matrices = {}
    for name, run in runs.items():
        for when, predictions in (("before", run.before), ("after", run.predictions)):
            matrix = _matrix(predictions, task)
            if matrix is not None:
                matrices[name, when] = matrix
    if not matrices:
        return Html()
    pictures = []
    for (name, when), matrix in matrices.items():
        title = (
            f"{name}: {percent(float(metrics.accuracy(matrix)))}"
            if when == "after"
            else f"{name}, before: {percent(float(metrics.accuracy(matrix)))}"
        )
        pictures.append(_picture(figures.confusion(matrix, task.classes, title), f"confusion matrix of {task.name}, {name}, {when}"))
    bins = [
        _picture(
            figures.reliability_diagram(
                metrics.reliability(metrics.probabilities(run.predictions.logits[task.name]), run.predictions.labels[task.name]), name
            ),
            f"calibration of {task.name}, {name}",
        )
        for name, run in runs.items()
        if (name, "after") in matrices
    ]
    text = "Rows are labels, columns predictions, each row in percent with the number of records below."
    return join(
        [
            tag("h3", task.name.capitalize(), " ", tag("small", text)),
            grid(pictures, "wide" if task.num_classes > 4 else "figures"),
            _class_table(matrices, task),
            details("Calibration: accuracy against confidence", grid(bins), opened=True),
        ]
    )


def _class_table(matrices: Mapping[tuple[str, str], np.ndarray], task: Task) -> Html:
    one_run = len({name for name, _ in matrices}) == 1
    header, columns = ["class", "records"], []
    for (name, when), matrix in matrices.items():
        prefix = "" if one_run else f"{name}: "
        columns.append([percent(value) for value in metrics.recall(matrix)])
        header.append(f"{prefix}recall before" if when == "before" else f"{prefix}recall")
        if when == "after":
            columns[-1] = [Cell(percent(value), class_="strong", bar=value) for value in metrics.recall(matrix)]
            columns.append([percent(value) for value in metrics.precision(matrix)])
            header.append(f"{prefix}precision")
    records = np.max([matrix.sum(axis=1) for matrix in matrices.values()], axis=0)
    return table(
        header,
        [
            [Cell(name, sort=index), f"{records[index]:,}", *(column[index] for column in columns)]
            for index, name in enumerate(task.classes)
        ],
    )


# -- agreement, published figures


def _agreement(runs: Runs) -> Html:
    answered = [(name, run.predictions) for name, run in runs.items() if run.predictions is not None]
    rows = []
    for index, (first, ours) in enumerate(answered):
        for second, theirs in answered[index + 1 :]:
            places = {record: row for row, record in enumerate(theirs.id)}
            pairs = np.array([(row, places[record]) for row, record in enumerate(ours.id) if record in places], int).reshape(-1, 2)
            shared = [task.name for task in ours.tasks if task in theirs.tasks]
            for task in shared if len(pairs) else ():
                share = metrics.agreement(ours.predicted(task)[pairs[:, 0]], theirs.predicted(task)[pairs[:, 1]])
                rows.append([f"{first} and {second}", Cell(task, class_="left"), Cell(percent(share), bar=share), f"{len(pairs):,}"])
    text = "Share of test records that two models put in the same class, right or wrong."
    return join([tag("p", text), table(["models", "task", "agreement", "records"], rows)]) if rows else Html()


def _published(runs: Runs) -> Html:
    """Printed accuracies beside ours, where a run was tested on one of the thesis's test sets."""
    ours: dict[str, dict[str, float]] = {}
    for name, run in runs.items():
        for task in run.tasks if run.predictions is not None else ():
            for source, value in metrics.source_accuracies(run.predictions, task).items():
                plain = "".join(letter for letter in source.lower() if letter.isalnum())
                if plain in tables.SOURCES.get(task.name, ()):
                    ours.setdefault(f"{task.name}/{plain}", {})[name] = value
    if not ours:
        return Html()
    printed = [entry for entry in tables.THESIS if entry.number in ("4.1", "4.4", "4.5", "4.6", "4.8", "4.9", "4.10")]
    header = ["figure", *(f"{name} (this page)" for name in runs), *dict.fromkeys(model for entry in printed for model in entry.rows)]
    rows = []
    for column, values in ours.items():
        cells = []
        for model in header[1 + len(runs) :]:
            found = {entry.setting: value for entry in printed if (value := entry.value(model, column)) is not None}
            cells.append(" / ".join(f"{value:.2f}" for value in dict.fromkeys(found.values())) or "—")
        rows.append([column, *(Cell(percent(values.get(name), 2), class_="strong") for name in runs), *cells])
    text = (
        "Accuracy printed in the thesis, single-task / multi-task where they differ, in percent. Comparable only if the test records are "
        "the same: the official test splits, with the same faces found."
    )
    found = [tag("li", str(entry)) for entry in tables.contradictions()]
    return join([tag("p", text), table(header, rows), details(f"{len(found)} printed figures contradict others", tag("ul", *found))])


# -- faces


def _thumbnails(run: Run) -> Callable[[str], Html]:
    def image(record: str) -> Html:
        if record not in run.faces:
            return Html()
        data = cv2.imencode(".jpg", run.faces[record][..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()
        return Html(f'<img alt="" src="{figures.to_data_uri(data, "image/jpeg")}">')

    return image


def _faces(runs: Runs) -> Html:
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
    return None if label == MISSING else bool(label == predictions.predicted(task.name)[row])


def _card(run: Run, row: int) -> Html:
    lines = []
    for task in run.tasks:
        logits = run.predictions.logits[task.name][row]
        probability, name = metrics.probabilities(logits[None])[0].max(), task.classes[logits.argmax()]
        right = _is_right(run.predictions, task, row)
        mark, class_ = {None: ("·", None), True: ("✓", "right"), False: ("✗", "wrong")}[right]
        label = "" if right is not False else tag("span", f" not {task.classes[run.predictions.labels[task.name][row]]}")
        lines.append(tag("li", tag("b", f"{mark} {name}", class_=class_), tag("span", f" {100 * probability:.0f} %"), label))
    return tag("div", _thumbnails(run)(run.predictions.id[row]), tag("ul", *lines), class_="face")


def _hardest(runs: Runs) -> Html:
    parts = []
    for name, run in runs.items():
        found = sorted(_mistakes(run), key=lambda entry: entry[0])[:HARDEST]
        image = _thumbnails(run)
        pictures = any(record in run.faces for _, record, *_ in found)
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
            header = ["record", *(["face"] if pictures else []), "task", "label", "predicted", "probability of the label"]
            parts.append(details(name, table(header, rows), opened=name == list(runs)[-1]))
    text = "Wrong answers in which the model gave the label the least probability: the model's errors, or the labels'."
    return join([tag("p", text), *parts]) if parts else Html()


def _mistakes(run: Run) -> Iterator[tuple[float, str, str, str, str]]:
    """Of each wrong answer: probability of the label, record, task, label, predicted class."""
    for task in run.tasks if run.predictions is not None else ():
        labels, predicted = run.predictions.labels[task.name], run.predictions.predicted(task.name)
        shares = metrics.probabilities(run.predictions.logits[task.name])
        for row in np.flatnonzero((labels != MISSING) & (labels != predicted)):
            label = labels[row]
            yield float(shares[row, label]), str(run.predictions.id[row]), task.name, task.classes[label], task.classes[predicted[row]]


# -- notes


def _notes(runs: Runs) -> Html:
    notes = []
    if any(_is_drawn(run) for run in runs.values()):
        notes.append(
            "The faces on this page are drawn by a program, not photographed. "
            "Figures on drawn faces show that training works; they say nothing about photos of people."
        )
    if set(_tasks(runs)) & {"age", "gender", "emotion"}:
        notes.append(
            "Age, gender and emotion mean what a viewer perceives in a picture, in the classes of the labels: not a person's age in years, "
            "identity or state of mind. The models err more often on groups that their training data holds few of; look at the recall of "
            "each class, and measure on your own data before any use. They are not fit for decisions about a person."
        )
    return join(tag("div", tag("p", note), class_="note") for note in notes)


def _is_drawn(run: Run) -> bool:
    sources = set(run.predictions.source) if run.predictions is not None else set()
    return bool(run.option("data.drawn") and not run.option("data.sets")) or bool(sources & {"drawn", "synthetic"})


SECTIONS: list[tuple[str, str, str, Callable[[Runs], Html]]] = [
    ("results", "Results", "Results", _results),
    ("faces", "Faces", "Predicted faces", _faces),
    ("classes", "Classes", "Class by class", _classes),
    ("training", "Training", "Training", _training),
    ("hardest", "Hardest", "Hardest examples", _hardest),
    ("agreement", "Agreement", "Agreement between the models", _agreement),
    ("published", "Published", "Beside the published figures", _published),
    ("setup", "Setup", "What ran", _setup),
    ("notes", "Notes", "How to read this", _notes),
]
"""The page's parts, in order: anchor, short name, heading, and the function that shows runs."""
