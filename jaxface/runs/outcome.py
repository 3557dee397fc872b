"""What a run leaves for those who look at it: a test of its best model, pictures, baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxface.digests import record_digests
from jaxface.evaluation.predictions import Predictions
from jaxface.evaluation.summary import figures
from jaxface.files import aside, write_json
from jaxface.runs.best import read_best
from jaxface.runs.config import Config
from jaxface.runs.data import Images
from jaxface.runs.folder import OUTCOME, RESULT
from jaxface.runs.predictions_file import write_predictions

FACES = 48
"""Test images kept as pictures for the report."""


def write_outcome(folder: Path, config: Config, images: Images, predictions: Predictions, counts: dict[str, Any]) -> None:
    """Writes predictions, pictures, baselines and, last of all, `result.json`, which says that the run is done.

    Args:
      predictions: of the best model on the test split.
      counts: steps, epochs and skipped steps, and the records that could not be read.
    """
    values = figures(predictions)
    write_predictions(folder / "predictions.parquet", predictions)
    write_faces(folder, images)
    write_baselines(folder, config, images, values)
    info = read_best(folder).info
    result = {**counts, "best": info, "split": images.test_split(), "test": values}
    write_json(folder / RESULT, result)
    record_digests(folder, OUTCOME)


def write_faces(folder: Path, images: Images) -> None:
    """The first test images, `faces.npz`."""
    batch = next(iter(images.evaluation(images.test_split())))
    keep = np.flatnonzero(np.asarray(batch["valid"]))[:FACES]
    arrays: dict[str, Any] = {"id": np.asarray(batch["id"])[keep].astype(str), "image": np.asarray(batch["image"])[keep]}
    with aside(folder / "faces.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def write_baselines(folder: Path, config: Config, images: Images, values: dict[str, float]) -> None:
    """What needs no model: `baselines.json`."""
    from jaxface.evaluation.baselines import pixel_accuracy  # scikit-learn's models are slow to import

    majority = {name.removeprefix("majority/"): value for name, value in values.items() if name.startswith("majority/")}
    baselines: dict[str, Any] = {"majority": majority}
    if config.pixels:
        split = images.test_split()
        baselines["pixels"] = pixel_accuracy(lambda: images.evaluation("train"), lambda: images.evaluation(split), config.tasks)
    write_json(folder / "baselines.json", baselines)
