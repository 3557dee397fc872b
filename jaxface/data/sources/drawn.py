"""Drawn faces as a data set: train and validation with labels missing, and a test split of other drawings with none missing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from jaxface.data.engines import WORTH_A_PROCESS
from jaxface.data.records import Record
from jaxface.data.sources.base import Source, register_source
from jaxface.data.synthetic import DrawnSet, draw_face
from jaxface.data.tasks import AGE, MISSING, TASKS, age_labels
from jaxface.progress import Track


@register_source("synthetic")
class Synthetic(Source):
    """The folder is the name of a drawing style."""

    on_disk = False
    layout = "the name of a drawing style in place of the folder (paint, charcoal)"

    def check(self, folder: Path) -> None:
        """There is no folder to look into."""

    def records(self, folder: Path, options: DrawnSet) -> Iterator[Record]:
        drawings = replace(options, style=folder.name)
        split_of = ["train"] * drawings.count + ["test"] * drawings.test_count
        with Track(f"drawing {drawings.style}", len(split_of), unit="faces") as track, spread(len(split_of)) as mapped:
            for record in mapped(partial(draw_record, drawings), range(len(split_of)), split_of):
                track.advance()
                yield record


@contextmanager
def spread(count: int) -> Iterator[Callable[..., Iterator[Record]]]:
    """A `map` over so many drawings, by processes where there are enough to be worth their start."""
    if count < WORTH_A_PROCESS:
        yield map
        return
    # spawned: the parent may hold threads of JAX by now
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        yield partial(pool.map, chunksize=64)


def draw_record(drawings: DrawnSet, index: int, split: str) -> Record:
    """One drawn face as a record, its image a PNG."""
    missing = 0.0 if split == "test" else drawings.missing
    skew = 1.0 if split == "test" else drawings.skew
    face = draw_face(drawings.seed, index, style=drawings.style, size=drawings.size, missing=missing, skew=skew)
    png = cv2.imencode(".png", cv2.cvtColor(face.image, cv2.COLOR_RGB2BGR))[1].tobytes()
    labels = face.labels if face.labels[AGE.name] == MISSING else {**face.labels, **age_labels(face.years)}
    if split != "test" and labels.get(drawings.noisy, MISSING) != MISSING:
        labels = {**labels, drawings.noisy: blurred(labels[drawings.noisy], drawings, index)}
    return Record(id=f"{drawings.style}/{drawings.seed}/{index}", split=split, image=png, labels=labels)


def blurred(label: int, drawings: DrawnSet, index: int) -> int:
    """The label, or in `drawings.noise` of all cases one drawn at random."""
    rng = np.random.default_rng((drawings.seed, index, 1))
    return int(rng.integers(TASKS[drawings.noisy].num_classes)) if rng.random() < drawings.noise else label
