"""What is in a prepared set, for a person to see: a picture of its summary, and a page of training batches as the model gets them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from jaxface.data.augment import Augment
from jaxface.data.framing import resize
from jaxface.data.images import Unreadable, decode, encode
from jaxface.data.pipeline import Joined, train_batches
from jaxface.data.records import joined_tasks, open_records, read_summary
from jaxface.data.sampling import NUMBER_BINS, replicas, sample_weights, shares, task_shares
from jaxface.data.tasks import TASKS, Task, known
from jaxface.plots import COLOURS, WRONG, new_figure, styled, to_data_uri, to_png_bytes
from jaxface.registry import require_known
from jaxface.report.markup import page, render, table

TILE, COLUMNS, ROWS = 72, 16, 5
"""Side in pixels of a face in the contact sheet, and how many there are."""


def write_summary_picture(folder: Path) -> Path:
    """Draws `summary.png` into a prepared folder: classes of each task, what was left out and why, random faces."""
    path = folder / "summary.png"
    path.write_bytes(to_png_bytes(_summary_figure(read_summary(folder), _contact_sheet(folder)), dpi=110))
    return path


@styled
def _summary_figure(summary: dict[str, Any], faces: np.ndarray) -> Figure:
    tasks = [task for task in summary["classes"] if any(sum(split["labels"][task]) for split in summary["splits"].values())]
    whole, _ = new_figure(11, 7.4)
    whole.clear()
    parts: Any = whole.subfigures(2, height_ratios=[3, 4])
    top, bottom = parts
    reasons = dict(list(summary["dropped"]["reasons"].items())[:8])
    axes = top.subplots(1, max(1, len(tasks) + bool(reasons)), squeeze=False)[0]
    if not tasks and not reasons:  # of pictures without any label
        axes[0].set_axis_off()
    for place, task in zip(axes, tasks, strict=False):
        classes, width = summary["classes"][task] or ["numbers"], 0.8 / len(summary["splits"])
        for index, (split, colour) in enumerate(zip(summary["splits"], COLOURS, strict=False)):
            place.bar(np.arange(len(classes)) + index * width, summary["splits"][split]["labels"][task], width, color=colour, label=split)
        place.set_xticks(np.arange(len(classes)) + 0.4 - width / 2, classes, rotation=45, ha="right")
        place.set_title(task)
        place.grid(visible=False, axis="x")
    top.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    if reasons:
        axes[-1].barh([reason[:48] for reason in reasons], list(reasons.values()), color=WRONG)
        axes[-1].invert_yaxis()
        axes[-1].grid(visible=False, axis="y")
        axes[-1].set_title(f"left out: {summary['dropped']['count']:,}")
    place = bottom.subplots()
    place.imshow(faces)
    place.set_axis_off()
    kept = ", ".join(f"{split['records']:,} {name}" for name, split in summary["splits"].items())
    place.set_title(f"random faces of {summary['source']}: {kept}")
    return whole


def _contact_sheet(folder: Path) -> np.ndarray:
    """Random faces of all splits in rows: uint8 [ROWS * TILE, COLUMNS * TILE, 3]."""
    splits = [open_records(folder, split) for split in read_summary(folder)["splits"]]
    sheet = np.full((ROWS, COLUMNS, TILE, TILE, 3), 255, np.uint8)
    places = [(part, index) for part, records in enumerate(splits) for index in range(len(records))]
    chosen = np.random.default_rng(0).permutation(len(places))[: ROWS * COLUMNS]
    for tile, place in zip(sheet.reshape(-1, TILE, TILE, 3), chosen, strict=False):
        part, index = places[place]
        try:
            tile[:] = resize(decode(splits[part][index]["image"]), TILE)
        except Unreadable:
            tile[:] = (192, 57, 43)
    return sheet.swapaxes(1, 2).reshape(ROWS * TILE, COLUMNS * TILE, 3)


def batch_page(folders: Sequence[str], tasks: Sequence[str], *, sampling: str, image_size: int, count: int, seed: int = 0) -> str:
    """An HTML page of training images as the model gets them, with their labels, and of the classes before and after sampling.

    Raises UserError if a folder is not a prepared one or has no training records.
    """
    own = {**dict(TASKS.items()), **joined_tasks(folders)}
    require_known("task", tasks, own)
    labels = Joined(folders, "train", tasks).labels
    options: dict[str, Any] = {"image_size": image_size, "batch_size": count, "seed": seed, "augment": Augment(), "sampling": sampling}
    batch = next(train_batches(folders, tasks, **options))
    lead = f"{len(next(iter(labels.values()))):,} training records of {', '.join(folders)}, drawn by {sampling} sampling"
    cards = render("batch.html", cards=[_card(batch, row, own) for row in range(count)])
    classes = Markup().join(class_tables(labels, own))
    parts = [("batch", "Batch", "The first batch", cards), ("classes", "Classes", "Classes before and after balanced sampling", classes)]
    return page("What the model sees", lead, parts)


def _card(batch: dict[str, Any], row: int, tasks: Mapping[str, Task]) -> tuple[str, list[str]]:
    """A training image as the model gets it, and its labels in words."""
    there = {name: labels[row] for name, labels in batch["labels"].items() if known(labels[row : row + 1])[0]}
    words = [tasks[name].of.label_words(tasks[name], label) for name, label in there.items()]
    image = cv2.resize(batch["image"][row], (168, 168), interpolation=cv2.INTER_AREA)
    return to_data_uri(encode(image), "image/jpeg"), words or ["no label"]


def class_tables(labels: dict[str, np.ndarray], tasks: Mapping[str, Task]) -> list[Markup]:
    """The thesis's Table 3.2 for these labels: samples, their share, and that after balanced sampling, of each class and each task."""
    classes = {name: tasks[name].num_classes for name in labels}
    plain, weights = np.ones(len(next(iter(labels.values())))), sample_weights(labels, replicas(labels))
    before, after = shares(labels, classes, plain), shares(labels, classes, weights)
    tables = []
    for task, values in labels.items():
        there = known(values)
        if not there.any():
            continue
        names = [*tasks[task].classes, "none"] if values.ndim > 1 else tasks[task].classes if values.dtype.kind != "f" else ranges(values)
        rows = zip(names, there.sum() * before[task], 100 * before[task], 100 * after[task], strict=True)
        tables.append(table((task, "samples", "%", "weighted %"), [(name, f"{n:.6g}", f"{p:.2f}", f"{w:.2f}") for name, n, p, w in rows]))
    carried, drawn = task_shares(labels, plain), task_shares(labels, weights)
    rows = [(task, int(known(labels[task]).sum()), f"{100 * carried[task]:.2f}", f"{100 * drawn[task]:.2f}") for task in labels]
    return [*tables, table(("task", "samples", "%", "weighted %"), rows)]


def ranges(values: np.ndarray) -> list[str]:
    """The ranges of a number that its records are balanced over, in words."""
    edges = np.linspace(np.nanmin(values), np.nanmax(values), NUMBER_BINS + 1)
    return [f"{low:.4g} to {high:.4g}" for low, high in itertools.pairwise(edges)]
