"""The model of a run: as its configuration describes it before training, and as training left it in `best/`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from safetensors import SafetensorError
from safetensors.numpy import load_file

from jaxface import weights
from jaxface.adapters.methods import adapt_with_groups, get_method, merge, shallow_copy
from jaxface.adapters.quantized import quantize
from jaxface.data.tasks import Task, get_task
from jaxface.errors import UserError
from jaxface.files import write_arrays, write_json
from jaxface.models.encoder import Encoder, random_encoder, use_attention
from jaxface.models.heads import Classifier
from jaxface.models.tree import flatten
from jaxface.models.variants import get_variant
from jaxface.objectives.losses import get_loss
from jaxface.ranges import PathLike, checked
from jaxface.runs.config import RANDOM, Config
from jaxface.runs.folder import read_config
from jaxface.runs.parts import Arrays, Parts, fingerprint, take_apart
from jaxface.runs.temperatures import read_temperatures


def compute_dtype(config: Config) -> DTypeLike:
    """The dtype of activations and frozen kernels."""
    word = config.encoder.precision
    if word == "auto":
        word = "fp32" if jax.default_backend() == "cpu" else "bf16"
    return jnp.bfloat16 if word == "bf16" else jnp.float32


def base_model(config: Config) -> tuple[Encoder, Classifier | None]:
    """The encoder that the run starts from, and the whole model where it starts from another run.

    Raises UserError if no weights are named for a method that adapts some.
    """
    source = config.encoder.weights
    if source == RANDOM:
        return random_encoder(get_variant(config.encoder.variant), config.seed), None
    if source is None:
        raise UserError(
            f"method {config.method.name} needs an encoder: --encoder.weights FILE_OR_RUN (or the word '{RANDOM}' to train from nothing)"
        )
    if Path(source).is_dir():
        model = load_trained(source).model
        return merge(model.encoder), model
    return weights.load_encoder(source), None


def make_parts(config: Config) -> Parts:
    """The model that the configuration describes, before training, taken apart."""
    encoder, previous = base_model(config)
    method = get_method(config.method.name)
    rngs = nnx.Rngs(config.seed)
    encoder, groups = adapt_with_groups(encoder, method.name, replace(config.method.options, num_tasks=len(config.tasks)), rngs)
    quantize(encoder, config.encoder.base, groups)
    encoder.remat, encoder.dtype = config.encoder.remat, compute_dtype(config)
    use_attention(encoder, config.encoder.attention)
    classes = {task: get_task(task).num_classes for task in config.tasks}
    outputs = {task: get_loss(name).output for task, name in config.losses.items()}
    head = {"deep": config.head.deep, "batch_norm": method.batch_norm, "dropout": config.head.dropout, "outputs": outputs}
    model = Classifier(encoder, classes, **head, rngs=rngs)
    if previous is not None:
        _take_heads(model, previous)
    return take_apart(model, groups, compute_dtype(config))


def shapes_of(config: Config) -> Parts:
    """The parts of `make_parts` for random weights as shapes, nothing computed."""
    made: list[Parts] = []
    config = replace(config, encoder=replace(config.encoder, weights=RANDOM))
    jax.eval_shape(lambda: made.append(make_parts(config)))
    arrays = {
        field: {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in getattr(made[0], field).items()}
        for field in ("trained", "statistics", "frozen")
    }
    return replace(made[0], **arrays)


def _take_heads(model: Classifier, previous: Classifier) -> None:
    """Starts each head from the earlier run's head of the same task and shape."""
    for task in model.heads:
        if task in previous.heads:
            mine, theirs = flatten(model.heads[task]), flatten(previous.heads[task])[0]
            if {k: v.shape for k, v in mine[0].items()} == {k: v.shape for k, v in theirs.items()}:
                model.heads[task] = mine[1].build(theirs)


def save_best(folder: Path, parts: Parts, trained: Arrays, statistics: Arrays, info: dict[str, Any], base_hash: str) -> None:
    """Writes what trained, and where the rest comes from, into `best/`."""
    arrays = {name: np.asarray(leaf) for name, leaf in {**trained, **statistics}.items()}
    record = {"base_sha256": base_hash, **info}
    write_arrays(folder / "best" / "trained.safetensors", arrays, {"info": json.dumps(record)})
    write_json(folder / "best" / "info.json", record)


@dataclass(frozen=True)
class Trained:
    """A run's best model.

    Attributes:
      folder: the run folder.
      config: of the run.
      model: the classifier, its adapters as they were trained.
      digest: SHA-256 of the file that holds what trained: it names the model.
      temperatures: of `jaxface.evaluate`, per task; empty before it ran.
    """

    folder: Path
    config: Config
    model: Classifier
    digest: str
    temperatures: Mapping[str, float]

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it predicts."""
        return tuple(map(get_task, self.config.tasks))

    @property
    def image_size(self) -> int:
        """Side in pixels of its input."""
        return self.config.encoder.image_size or self.model.encoder.config.image_size

    def merged(self) -> Classifier:
        """The same model with its adapters merged: it costs what the plain encoder costs."""
        model = shallow_copy(self.model)
        model.encoder = merge(model.encoder)
        return model


def load_trained(folder: Path | str) -> Trained:
    """Reads a run's best model.

    Raises UserError if the folder has no finished epoch, or if the base weights are not those that it was trained on.
    """
    folder = Path(folder)
    config = read_config(folder)
    path = folder / "best" / "trained.safetensors"
    if not path.is_file():
        raise UserError(f"{folder} has no best model yet: train it for an epoch first")
    parts = make_parts(config)
    try:
        arrays = load_file(path)
        info = json.loads((folder / "best" / "info.json").read_text())
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}): train the run again") from error
    if fingerprint(parts.frozen) != info["base_sha256"]:
        raise UserError(f"{folder} was trained on other base weights than those at {config.encoder.weights}: restore the file it names")
    expected = {**parts.trained, **parts.statistics}
    if {k: v.shape for k, v in arrays.items()} != {k: v.shape for k, v in expected.items()}:
        raise UserError(f"{path}: its arrays do not fit the configuration in {folder / 'config.json'}")
    model = parts.build({name: jnp.asarray(array) for name, array in arrays.items()})
    digest = model_digest(folder)
    return Trained(folder, config, model, digest, read_temperatures(folder, digest))


def model_digest(folder: Path) -> str:
    """SHA-256 of what a run has trained."""
    with (folder / "best" / "trained.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@checked
def load_run(folder: PathLike) -> tuple[Config, Classifier]:
    """A run's configuration and its best model. Raises UserError as `load_trained`."""
    trained = load_trained(folder)
    return trained.config, trained.model


@checked
def load_encoder(path: PathLike, **options: Unpack[weights.EncoderKeywords]) -> Encoder:
    """A run's best encoder, its adapters merged; or a checkpoint's, as `jaxface.weights.load_encoder` with its options.

    Raises UserError as `load_trained`, or as that; and for options of a run, whose configuration says them.
    """
    if Path(path).is_dir():
        if options:
            raise UserError(f"{path}: a run says its own {', '.join(options)}; expected no options, or a checkpoint")
        return merge(load_trained(path).model.encoder)
    return weights.load_encoder(path, **options)
