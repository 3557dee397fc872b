"""Prediction on this machine: a batch by every engine, the first answer of a new process, finding faces, and the whole way from file to
answer beside the slower of its parts, behind which all else should hide."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import cv2
import numpy as np

from jaxface.benchmarks._options import Timed
from jaxface.benchmarks._predict_engines import REFERENCES, engine_case, engine_names, export_both, shape_of, write_random_run
from jaxface.benchmarks._worker import Worker, take_turns
from jaxface.cli import parse
from jaxface.data.faces import DETECTORS
from jaxface.errors import UserError, tell
from jaxface.launchers import cpu_count
from jaxface.prediction import engines
from jaxface.prediction.items import Item, find_paths
from jaxface.prediction.options import FaceOptions
from jaxface.prediction.predictor import Finder, Predictor
from jaxface.prediction.stream import look, predict_stream
from jaxface.progress import Track
from jaxface.ranges import Items, Known, Place, Range, Where, ranged, refuse_idle
from jaxface.timing import interleaved, medians

Row = dict[str, Any]
SIDES = (350, 640, 1000, 1600, 4000)
"""Longer sides in pixels of generated photos."""


@ranged()
class Options(Timed):
    """Prediction's speed. With --json one line an engine (`engine`, `seconds` of a batch), one of the first answer, one a way to faces.

    Attributes:
      faces: detectors to measure with; none leaves the whole way out.
      detector_files: model files of the last of them, where it does not bring its own.
      photos: a folder of photos; generated ones of 350 to 4,000 pixels if not given.
      batches: in each round of the whole way.
      engine: that goes the whole way.
      references: also timm in PyTorch (float32, bfloat16's autocast, compiled) and ONNX Runtime as it is.
      first: also the first answer of a process that is started anew, without and with what the one before has left in the user's cache.
    """

    faces: Annotated[tuple[str, ...], Known(DETECTORS), Items()] = ("whole", "ssd")
    detector_files: tuple[Where, ...] = ()
    photos: Annotated[str | None, Place()] = None
    batches: Annotated[int, Range(1, 10_000)] = 4
    engine: engines.Name = engines.AUTO
    references: bool = True
    first: bool = True

    def __post_init__(self) -> None:
        refuse_idle(self, bool(self.faces), "the whole way is left out", "detector_files", "photos", "batches")


def write_photos(folder: Path, count: int) -> None:
    """JPEG photos of smooth noise, of `SIDES` in turn."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for index in range(count):
        side = SIDES[index % len(SIDES)]
        small = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{index:04d}.jpg"), cv2.resize(small, (side, side * 3 // 4), interpolation=cv2.INTER_CUBIC))


def engine_rows(options: Options, run: Path) -> Iterator[Row]:
    """Seconds of a batch by every engine and reference that is there, in turns."""
    shape = shape_of(options.variant, options.batch_size)
    with ExitStack() as stack, Track("engines", options.rounds, unit="rounds") as track:
        workers: dict[str, Worker] = {}
        for name in (*engine_names(), *(REFERENCES if options.references else ())):
            try:
                workers[name] = stack.enter_context(Worker(engine_case, f"{name}\n{run}", shape))
            except UserError as error:
                tell(f"left out {name}: {error}")
        for name, seconds in take_turns(workers, options.rounds, track).items():
            row = {"engine": name, "seconds": median(seconds), "variant": options.variant, "batch_size": options.batch_size}
            yield row | {"peak_memory_bytes": workers[name].peak_memory()}


def first_answer(options: Options, run: Path, photo: Path) -> Row:
    """Seconds from the start of a process to the answer for one photo, with an empty cache and with a full one."""
    seconds = []
    command = [sys.executable, "-m", "jaxface.predict", str(run), str(photo), "--faces", "whole"]
    with tempfile.TemporaryDirectory() as cache:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMPILATION", "JAX_PERSISTENT"))}
        for _ in range(1 + options.rounds):
            start = time.perf_counter()
            subprocess.run(
                command, env=environment | {"XDG_CACHE_HOME": cache}, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            seconds.append(time.perf_counter() - start)
    row = {"first_answer_cold_seconds": seconds[0], "first_answer_warm_seconds": median(seconds[1:])}
    return row | {"variant": options.variant}


def way_rows(options: Options, folder: Path) -> Iterator[Row]:
    """Images a second of the model alone, of finding faces alone, and of both, for each way of finding them."""
    count = options.batches * options.batch_size
    if options.photos is None:
        write_photos(folder / "photos", count)
    paths = find_paths([options.photos or str(folder / "photos")])
    items = [Item(paths[index % len(paths)]) for index in range(count)]
    predictor = Predictor(folder / "run", FaceOptions("whole"), options.batch_size, engine=options.engine, most_loss=1.0)
    crops = [np.full((predictor.image_size, predictor.image_size, 3), 128, np.uint8)] * options.batch_size

    def model_alone() -> None:
        for logits in [predictor.classify(crops) for _ in range(options.batches)]:
            predictor.answers(logits, len(crops))

    cases: dict[str, Callable[[], Any]] = {"model alone": model_alone}
    for name in options.faces:
        files = options.detector_files if name == options.faces[-1] else ()
        finder = Finder(FaceOptions(name, files, threshold=None if name == "whole" else 0.0, most_faces=1))
        cases |= {f"{name} alone": _found(predictor, finder, items), f"predict, {name}": _stream(predictor, finder, items)}
    speed = {name: count / seconds for name, seconds in medians(interleaved(cases, options.rounds)).items()}
    for name, value in speed.items():
        row: Row = {"case": name, "images_per_second": value, "engine_of_the_way": predictor.engine}
        if name.startswith("predict, "):
            parts = speed["model alone"], speed[f"{name.removeprefix('predict, ')} alone"]
            row["of_the_slower_part"] = value / min(parts)
            row["of_one_after_the_other"] = value * sum(1 / part for part in parts)  # 1 where each alone keeps all processors busy
        yield row


def _found(predictor: Predictor, finder: Finder, items: list[Item]) -> Callable[[], Any]:
    """Reads the photos and finds their faces, in as many threads as the stream."""

    def run() -> None:
        predictor.finder = finder
        with ThreadPoolExecutor(cpu_count()) as pool:
            list(pool.map(lambda item: look(predictor, item), items))

    return run


def _stream(predictor: Predictor, finder: Finder, items: list[Item]) -> Callable[[], Any]:
    """The whole way, one face a photo so that every case has as many."""

    def run() -> None:
        predictor.finder = finder
        results = list(predict_stream(predictor, items))
        found = sum(len(result["faces"]) for result in results)
        assert found == len(results), f"the detector found {found} faces in {len(results)} photos at threshold 0"

    return run


def said(row: Row) -> str:
    """A row as a line for people."""
    if "engine" in row:
        return f"{row['engine']:24} {row['seconds']:8.3f} s a batch {row['peak_memory_bytes'] / 2**30:8.2f} GiB"
    if "case" in row:
        shares = ("of_the_slower_part", "of_one_after_the_other")
        share = "".join(f"  {row[key]:.2f} {key.replace('_', ' ')}" for key in shares if key in row)
        return f"{row['case']:24} {row['images_per_second']:8.2f} images/s{share}"
    return f"first answer: cold {row['first_answer_cold_seconds']:.2f} s, warm {row['first_answer_warm_seconds']:.2f} s"


def main(arguments: list[str]) -> None:
    """Measures and prints."""
    options = parse(Options, args=arguments, prog="python -m jaxface.bench predict")
    cv2.setNumThreads(1)  # as the command does

    def show(row: Row) -> None:
        print(json.dumps(row) if options.json else said(row), flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder, run = Path(name), Path(name) / "run"
        write_random_run(run, options.variant)
        try:
            export_both(run)
        except UserError as error:
            tell(f"left out ONNX Runtime: {error}")
        for row in engine_rows(options, run):
            show(row)
        if options.first:
            photo = folder / "photo.jpg"
            cv2.imwrite(str(photo), np.full((480, 640, 3), 128, np.uint8))
            show(first_answer(options, run, photo))
        for row in way_rows(options, folder) if options.faces else ():
            show(row)
