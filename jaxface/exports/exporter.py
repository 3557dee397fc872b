"""What every export has: a manifest, samples to check with, and a check of its own before anyone relies on it."""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.data.framing import FRAMINGS, noted
from jaxface.data.task_files import task_to
from jaxface.digests import check_digest, file_digest, is_whole, record_digests
from jaxface.errors import UserError, tell
from jaxface.evaluation.metrics import probabilities
from jaxface.files import DIGESTS, alone_in, aside, read_object, write_json
from jaxface.models.encoder import normalize_images
from jaxface.models.variants import EncoderConfig
from jaxface.registry import Registry
from jaxface.runs.base import refuse_idle_places
from jaxface.runs.model import Trained, load_trained

Logits = Mapping[str, np.ndarray]
"""Per task [B, C]."""
Answer = Callable[[np.ndarray], Logits]
"""What was exported, as a function: images uint8 [B, S, S, 3] -> logits."""

TOLERANCE = 5e-5
"""Largest difference of a logit over the largest logit that an export may show, in float32.

Programs that round alike differ by up to 6e-6 after three blocks, a single kernel that is 1 % off by 1e-3 and more."""
CONSUMER_TOLERANCE = 1e-4
"""The same where another library computes, whose sums have another order: `jaxface.compare`'s."""
OWN_READER = "jaxface"

PREPROCESSING = (
    "RGB face crop (square around the face, enlarged by the margin of `jaxface.prepare` and `jaxface.predict`), squashed to the input's "
    "size ({filter}); pixels as x / 127.5 - 1 (mean 0.5, standard deviation 0.5 of 0..1)"
)

Exporter = Callable[[Trained, Path], tuple[Answer, dict[str, Any]]]
"""(model, folder) writes files and returns what they say, read back from the disk, and further entries of the manifest.

`checked_by` among these is the library that read them back, where it is not this one; `expected` an answer that stands for the model's
where they differ on purpose, with its `tolerance`.
"""

EXPORTERS: Registry[Exporter] = Registry("export format")
register_exporter, get_exporter = EXPORTERS.register, EXPORTERS.get

LOADERS: Registry[Callable[[Path], Answer]] = Registry("export format that holds a whole model")
"""By export format: the answers of a folder that an exporter wrote, by the library that the format is for."""

BuildTimm = Callable[[EncoderConfig], Any]
"""timm's model of a configuration. Raises UserError where timm is not installed."""


class Consumer(NamedTuple):
    """The library that a format is for.

    Attributes:
      name: as the manifest says who checked.
      load: (model, folder, builder) -> the answers of that library with the folder's files; raises MissingConsumer without it.
    """

    name: str
    load: Callable[[Trained, Path, BuildTimm], Answer]


class MissingConsumer(UserError):
    """The library that would check an export is not installed."""


CONSUMERS: Registry[Consumer] = Registry("consumer")
"""By export format, for those that the exporter itself does not read back with the library they are for."""


def export_run(
    run: Path,
    name: str,
    folder: Path,
    weights: Sequence[Path] = (),
    build_timm: BuildTimm | None = None,
    data: Sequence[Path] = (),
) -> dict[str, Any]:
    """Writes a run's model in a format, checks it, and writes `manifest.json` last. Returns the manifest.

    Args:
      weights: where else to look for the run's base weights.
      build_timm: with it exports for timm and PEFT are checked by these, see `jaxface.originals.reference.timm_vision`; without it, and
        where they are not installed, by this project's reader, which the manifest says.
      data: prepared folders whose validation records a rounded model is fitted on; the run's own if none is named.

    Raises UserError for an unknown format, a model that it has no place for, or logits that differ from the model's.
    """
    exporter = get_exporter(name)
    trained = load_trained(run, weights, dtype=jnp.float32)  # bfloat16 has no room for a small update in a merged kernel
    refuse_idle_places(run, trained.base, weights)
    if data:
        config = trained.config
        trained = replace(trained, config=replace(config, data=replace(config.data, sets=tuple(map(str, data)))))
    with alone_in(folder):
        (folder / "manifest.json").unlink(missing_ok=True)
        answer, more = exporter(trained, folder)
        expected = more.pop("expected", model_answer(trained.merged()))
        tolerance = more.pop("tolerance", TOLERANCE if trained.model.encoder.dtype == jnp.float32 else 2e-2)
        check = _check(Comparison(trained, expected, folder, tolerance), answer, more.pop("checked_by", OWN_READER))
        check |= _check_by_consumer(trained, name, folder, build_timm)
        manifest = _describe(trained, name) | more | {"check": check, "files": _digests(folder)}
        write_json(folder / "manifest.json", manifest)
        record_digests(folder, [*(name for name in manifest["files"] if "/" not in name), "manifest.json"])
    return manifest


def read_manifest(folder: str | Path, needed: Sequence[str] | None = None) -> dict[str, Any]:
    """An export's manifest, once every file of the folder is what was written. Says when JAX's promise to read it is over.

    Args:
      needed: the files that are looked at, where those are not all.

    Raises UserError if the folder is no export, or names the first file that is missing, damaged or changed.
    """
    folder = Path(folder)
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(f"{folder}: no {path.name}; expected a folder that `python -m jaxface.export RUN --to FORMAT` wrote")
    check_digest(path)
    try:
        manifest = read_object(path)
        until, by = str(manifest.get("readable_until", "")), manifest["versions"]["jax"]
        files = manifest["files"]
        damaged = [name for name in needed or files if not is_whole(folder / name, files[name])]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a manifest ({error}): copy the folder again, or export the run again") from None
    if damaged:
        raise UserError(f"{folder / damaged[0]}: missing, damaged or changed: copy the folder again, or export the run again")
    if until and until < datetime.date.today().isoformat():
        tell(f"note: {folder} was written by JAX {by}, which promised it until {until}: export the run again")
    return manifest


def load_exported(folder: str | Path) -> Answer:
    """An exported model (stablehlo, onnx, run) as a function: images uint8 [B, S, S, 3] -> logits [B, C] of each task.

    Raises UserError as `read_manifest`, for a format that holds no whole model, or if it cannot be read here.
    """
    folder = Path(folder)
    load = LOADERS.get(str(read_manifest(folder).get("format")))
    try:
        return load(folder)
    except UserError:
        raise
    except Exception as error:  # of the reader, whatever it was given
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: cannot be read by JAX {jax.__version__} ({reason}): export the run again") from None


def model_answer(model: Any) -> Answer:
    """A classifier as a function of images as they are stored."""
    return lambda images: {task: np.asarray(logits) for task, logits in _logits(model, images).items()}


@jax.jit
def _logits(model: Any, images: jax.Array) -> dict[str, jax.Array]:
    return model(normalize_images(images))


def difference(found: np.ndarray, expected: np.ndarray, output: str) -> float:
    """The largest difference of logits [B, C] over the largest one; of probabilities where logits are logarithms of small differences.

    A head of ranks (CORAL) subtracts two shares that may be almost equal: its logarithm has fewer right digits than anything before it.
    """
    if output == "ranks":
        return float(np.abs(probabilities(found) - probabilities(expected)).max())
    largest = max(float(np.abs(expected).max()), 1.0 if output == "number" else 0.0)  # a number is standardised: 0 is the mean
    return float(np.abs(found - expected).max() / largest)


class Comparison(NamedTuple):
    """What an export's answers are held against."""

    trained: Trained
    expected: Answer
    folder: Path
    tolerance: float

    def of(self, answer: Answer, reader: str) -> tuple[np.ndarray, Logits, float]:
        """Images, the logits expected for them, and how far the answers are off at most for batches of one and of three."""
        trained = self.trained
        images = np.random.default_rng(0).integers(0, 256, (3, trained.image_size, trained.image_size, 3), dtype=np.uint8)
        expected = self.expected(images)
        found = [
            difference(logits, expected[task][:count], trained.model.heads[task].output)
            for count in (1, 3)
            for task, logits in answer(images[:count]).items()
        ]
        worst = float(np.max(found))  # NaN where one of them is, unlike max()
        if not worst <= self.tolerance:
            raise UserError(
                f"{self.folder}: read by {reader}, the exported model's logits differ by {worst:.1e} of the largest, "
                f"more than {self.tolerance:.0e}"
            )
        return images, expected, worst


def _check(comparison: Comparison, answer: Answer, reader: str) -> dict[str, Any]:
    """Compares the answers, and keeps images and logits beside the model for whoever deploys it."""
    images, expected, worst = comparison.of(answer, reader)
    with aside(comparison.folder / "sample.npz") as temporary, temporary.open("wb") as file:
        arrays: dict[str, Any] = {"images": images, **{f"logits_{task}": value for task, value in expected.items()}}
        np.savez_compressed(file, **arrays)
    found = {"images": len(images), "largest_relative_difference": worst, "tolerance": comparison.tolerance, "sample": "sample.npz"}
    return found | {"checked_by": reader}


def _check_by_consumer(trained: Trained, name: str, folder: Path, build_timm: BuildTimm | None) -> dict[str, Any]:
    """What the check says instead where the library that the format is for is at hand."""
    if build_timm is None or name not in CONSUMERS:
        return {}
    consumer = CONSUMERS.get(name)
    try:
        answer = consumer.load(trained, folder, build_timm)
    except MissingConsumer as error:
        return {"checked_by": f"{OWN_READER} ({error})"}
    expected = model_answer(trained.merged())
    worst = Comparison(trained, expected, folder, CONSUMER_TOLERANCE).of(answer, consumer.name)[2]
    return {"largest_relative_difference": worst, "tolerance": CONSUMER_TOLERANCE, "checked_by": consumer.name}


def _describe(trained: Trained, name: str) -> dict[str, Any]:
    side = trained.image_size
    return {
        "format": name,
        "run": trained.config.name,
        "model_sha256": trained.digest,
        "classes": {task.name: list(task.classes) for task in trained.tasks},
        "tasks": {task.name: task_to(task) for task in trained.tasks},
        "temperatures": dict(trained.temperatures),
        "input": {"images": {"dtype": "uint8", "shape": ["batch", side, side, 3], "layout": "NHWC, RGB"}},
        "output": {task.name: {"dtype": "float32", "shape": ["batch", task.width], "what": task.of.what(task)} for task in trained.tasks},
        "preprocessing": PREPROCESSING.format(filter=FRAMINGS[trained.framing].words),
        **noted(trained.framing),
        "versions": {package: importlib.metadata.version(package) for package in ("jaxface", "jax")},
    }


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / DIGESTS)
    return {str(path.relative_to(folder)): file_digest(path) for path in files}
