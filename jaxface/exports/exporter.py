"""What every export has: a manifest, samples to check with, and a check of its own before anyone relies on it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxface.digests import file_digest, record_digests
from jaxface.errors import UserError
from jaxface.evaluation.metrics import probabilities
from jaxface.files import DIGESTS, aside, write_json
from jaxface.models.encoder import normalize_images
from jaxface.registry import Registry
from jaxface.runs.model import Trained, load_trained

Logits = Mapping[str, np.ndarray]
"""Per task [B, C]."""
Answer = Callable[[np.ndarray], Logits]
"""What was exported, as a function: images uint8 [B, S, S, 3] -> logits."""

TOLERANCE = 1e-5
"""Largest difference of a logit over the largest logit that an export may show, in float32."""

PREPROCESSING = (
    "RGB face crop (square around the face, enlarged by the margin of `jaxface.prepare` and `jaxface.predict`), squashed to the input's "
    "size (OpenCV: INTER_AREA where it shrinks, else INTER_LINEAR); pixels as x / 127.5 - 1 (mean 0.5, standard deviation 0.5 of 0..1)"
)

Exporter = Callable[[Trained, Path], tuple[Answer, dict[str, Any]]]
"""(model, folder) writes files and returns what they say, read back from the disk, and further entries of the manifest."""

EXPORTERS: Registry[Exporter] = Registry("export format")
register_exporter, get_exporter = EXPORTERS.register, EXPORTERS.get


def export_run(run: Path, name: str, folder: Path, weights: Sequence[Path] = ()) -> dict[str, Any]:
    """Writes a run's model in a format, checks it, and writes `manifest.json` last. Returns the manifest.

    Args:
      weights: where else to look for the run's base weights.

    Raises UserError for an unknown format, a model that it has no place for, or logits that differ from the model's.
    """
    exporter = get_exporter(name)
    trained = load_trained(run, weights, dtype=jnp.float32)  # bfloat16 has no room for a small update in a merged kernel
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from None
    (folder / "manifest.json").unlink(missing_ok=True)
    answer, more = exporter(trained, folder)
    check = _check(trained, answer, folder)
    manifest = _describe(trained, name) | more | {"check": check, "files": _digests(folder)}
    write_json(folder / "manifest.json", manifest)
    record_digests(folder, [*(name for name in manifest["files"] if "/" not in name), "manifest.json"])
    return manifest


def model_answer(model: Any) -> Answer:
    """A classifier as a function of images as they are stored."""
    return lambda images: {task: np.asarray(logits) for task, logits in model(normalize_images(jnp.asarray(images))).items()}


def difference(found: np.ndarray, expected: np.ndarray, output: str) -> float:
    """The largest difference of logits [B, C] over the largest one; of probabilities where logits are logarithms of small differences.

    A head of ranks (CORAL) subtracts two shares that may be almost equal: its logarithm has fewer right digits than anything before it.
    """
    if output != "classes":
        return float(np.abs(probabilities(found) - probabilities(expected)).max())
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _check(trained: Trained, answer: Answer, folder: Path) -> dict[str, Any]:
    """Compares logits for batches of one and of three; keeps images and logits beside the model for whoever deploys it."""
    images = np.random.default_rng(0).integers(0, 256, (3, trained.image_size, trained.image_size, 3), dtype=np.uint8)
    expected = model_answer(trained.merged())(images)
    worst = 0.0
    for count in (1, 3):
        for task, logits in answer(images[:count]).items():
            found = difference(logits, expected[task][:count], trained.model.heads[task].output)
            worst = found if not found <= worst else worst  # a NaN stays one
    tolerance = TOLERANCE if trained.model.encoder.dtype == jnp.float32 else 2e-2
    if not worst <= tolerance:
        raise UserError(f"{folder}: the exported model's logits differ by {worst:.1e} of the largest, more than {tolerance:.0e}")
    with aside(folder / "sample.npz") as temporary, temporary.open("wb") as file:
        arrays: dict[str, Any] = {"images": images, **{f"logits_{task}": value for task, value in expected.items()}}
        np.savez_compressed(file, **arrays)
    return {"images": len(images), "largest_relative_difference": worst, "tolerance": tolerance, "sample": "sample.npz"}


def _describe(trained: Trained, name: str) -> dict[str, Any]:
    side = trained.image_size
    return {
        "format": name,
        "run": trained.config.name,
        "model_sha256": trained.digest,
        "classes": {task.name: list(task.classes) for task in trained.tasks},
        "temperatures": dict(trained.temperatures),
        "input": {"images": {"dtype": "uint8", "shape": ["batch", side, side, 3], "layout": "NHWC, RGB"}},
        "output": {task.name: {"dtype": "float32", "shape": ["batch", task.num_classes], "what": "logits"} for task in trained.tasks},
        "preprocessing": PREPROCESSING,
        "versions": {package: importlib.metadata.version(package) for package in ("jaxface", "jax")},
    }


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / DIGESTS)
    return {str(path.relative_to(folder)): file_digest(path) for path in files}
