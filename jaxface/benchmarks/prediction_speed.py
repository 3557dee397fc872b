"""`python -m jaxface.predict`'s stream beside the bare speed of the model that it feeds: reading, decoding and finding faces should hide
behind the device's work."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np

from jaxface.cli import parse
from jaxface.data.faces import DETECTORS
from jaxface.files import write_json
from jaxface.models.variants import VARIANTS
from jaxface.prediction.items import Item, find_paths
from jaxface.prediction.options import FaceOptions
from jaxface.prediction.predictor import Predictor
from jaxface.prediction.stream import predict_stream
from jaxface.ranges import Count, Items, Known, Place, Range, Rounds, ranged
from jaxface.runs.best import save_best
from jaxface.runs.config import RANDOM, Config, EncoderOptions, MethodOptions, to_dict
from jaxface.runs.model import load_base, make_parts
from jaxface.timing import interleaved, medians


@ranged()
class Options:
    """Images per second of the whole way from file to answer, and of the model alone.

    Attributes:
      variant: of the encoder, with random weights.
      faces: detectors to measure with.
      photos: a folder of photos; generated ones of 640 x 480 if not given.
      batch_size: of the model.
      batches: in each round.
      rounds: of which the median counts.
      json: one line a case.
    """

    variant: Annotated[str, Known(VARIANTS)] = "PE-Core-B16-224"
    faces: Annotated[tuple[str, ...], Known(DETECTORS), Items(least=1)] = ("whole", "ssd")
    photos: Annotated[str | None, Place()] = None
    batch_size: Count = 8
    batches: Annotated[int, Range(1, 10_000)] = 4
    rounds: Rounds = 3
    json: bool = False


def write_random_run(folder: Path, variant: str) -> None:
    """A run folder whose model was never trained."""
    config = Config(encoder=EncoderOptions(weights=RANDOM, variant=variant), method=MethodOptions("lp"))
    base = load_base(config)
    parts = make_parts(config, base)
    save_best(folder, {**parts.trained, **parts.statistics}, {"base": RANDOM, "base_sha256": base.fingerprint})
    write_json(folder / "config.json", to_dict(config))


def write_photos(folder: Path, count: int) -> None:
    """JPEG photos of smooth noise."""
    random = np.random.default_rng(0)
    for index in range(count):
        small = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{index:04d}.jpg"), cv2.resize(small, (640, 480), interpolation=cv2.INTER_CUBIC))


def main(arguments: list[str]) -> None:
    """Measures and prints."""
    options = parse(Options, args=arguments, prog="python -m jaxface.bench predict")
    count = options.batches * options.batch_size
    cv2.setNumThreads(1)  # as the command does
    with tempfile.TemporaryDirectory() as folder:
        write_random_run(Path(folder) / "run", options.variant)
        if options.photos is None:
            write_photos(Path(folder), count)
        paths = find_paths([options.photos or folder])
        items = [Item(paths[index % len(paths)]) for index in range(count)]
        predictor = Predictor(Path(folder) / "run", FaceOptions("whole"), options.batch_size)
        crops = [np.full((predictor.image_size, predictor.image_size, 3), 128, np.uint8)] * options.batch_size
        cases: dict[str, Callable[[], Any]] = {"model alone": lambda: [predictor.classify(crops) for _ in range(options.batches)]}
        for name in options.faces:
            cases[f"predict, {name}"] = _stream(
                predictor, FaceOptions(name, threshold=None if name == "whole" else 0.0, most_faces=1), items
            )
        seconds = medians(interleaved(cases, options.rounds))
    for case, median in seconds.items():
        row = {"case": case, "images_per_second": count / median, "ratio": seconds["model alone"] / median}
        print(
            json.dumps(row)
            if options.json
            else f"{case:16} {row['images_per_second']:8.2f} images/s  {row['ratio']:.3f} of the model alone"
        )


def _stream(predictor: Predictor, faces: FaceOptions, items: list[Item]) -> Callable[[], Any]:
    """The stream over the items with another detector, and one face a photo so that every case has as many."""

    def run() -> None:
        predictor.options = faces  # each stream's threads make detectors of their own
        results = list(predict_stream(predictor, items))
        assert all(len(result["faces"]) == 1 for result in results), "the detector found no face at threshold 0"

    return run
