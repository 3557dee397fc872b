"""A task without faces: which colour is the shape in the picture. A task, and a source that draws its pictures; all else is as for faces.

python examples/other_task.py
python -m jaxface.prepare shapes . --out data/shapes --import examples/other_task.py

Run as a script it prepares a small set and trains a linear probe: even an encoder of random numbers tells colours apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from jaxface.data.preparation import prepare
from jaxface.data.records import Record
from jaxface.data.sources import Reading, Source, register_source
from jaxface.data.tasks import Task, register_task
from jaxface.runs.config import RANDOM, Config, DataOptions, EncoderOptions, HeadOptions, MethodOptions, OptimizerOptions
from jaxface.train import train

COLOUR = register_task(Task("colour", ("red", "green", "blue")))
COUNT = {"train": 600, "test": 200}


def draw_shape(label: int, rng: np.random.Generator, size: int = 60) -> np.ndarray:
    """A polygon of that colour, anywhere, of any size and shade, on grey: uint8 [size, size, 3] RGB."""
    image = np.full((size, size, 3), rng.uniform(0, 255), np.uint8)
    centre, radius, corners = rng.uniform(0.35, 0.65, 2) * size, rng.uniform(0.15, 0.3) * size, int(rng.integers(3, 9))
    angles = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(corners) / corners
    points = centre + radius * np.stack([np.cos(angles), np.sin(angles)], -1)
    shade = rng.uniform(0, 100, 3)
    shade[label] += rng.uniform(80, 150)
    cv2.fillPoly(image, [np.round(points).astype(np.int32)], shade.tolist(), cv2.LINE_AA)
    return image


@register_source("shapes")
class Shapes(Source):
    """Drawn shapes; the folder is not looked at."""

    layout = "any folder: the pictures are drawn"

    def check(self, folder: Path) -> None:
        """There is nothing to look into."""

    def records(self, folder: Path, options: Reading) -> Iterator[Record]:
        for split, count in COUNT.items():
            for index in range(count):
                rng = np.random.default_rng((index, len(split)))
                label = int(rng.integers(COLOUR.num_classes))
                png = cv2.imencode(".png", draw_shape(label, rng)[..., ::-1])[1].tobytes()
                yield Record(f"{split}/{index}", split, png, {COLOUR.name: label})


def configuration(sets: Path, out: Path, epochs: int) -> Config:
    """A run on the prepared set: a linear probe of a small encoder."""
    return Config(
        name="shapes",
        out=str(out),
        tasks=(COLOUR.name,),
        encoder=EncoderOptions(weights=RANDOM, variant="PE-Mini-10-60"),
        method=MethodOptions("lp"),
        head=HeadOptions(deep=False, dropout=0.0),
        data=DataOptions(sets=(str(sets),), augment=False),
        optimizer=OptimizerOptions(head=3e-2),
        batch_size=32,
        epochs=epochs,
    )


def main(out: Path = Path("runs"), epochs: int = 30) -> float:
    """Prepares, trains, and says the accuracy on the test split."""
    prepare("shapes", Path("."), out / "shapes_prepared")
    (folder,) = train(configuration(out / "shapes_prepared", out, epochs))
    accuracy = json.loads((folder / "result.json").read_text())["test"]["accuracy/colour"]
    print(f"accuracy {100 * accuracy:.1f} % ({100 / COLOUR.num_classes:.0f} % by chance)")
    return accuracy


if __name__ == "__main__":
    main()
