"""A run folder: its configuration, its model, and the files that others read.

config.json          the configuration
metrics.jsonl        one line a step or evaluation
checkpoints/         latest states, for exact resume
best/                trained.safetensors (what trained, batch statistics) and info.json (base weights and their hash)
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from safetensors import SafetensorError
from safetensors.numpy import load_file

from jaxface import weights as weights_file
from jaxface.adapters.methods import Group, adapt_with_groups, get_method, group_parameters, merge
from jaxface.adapters.quantized import quantize
from jaxface.data.tasks import get_task
from jaxface.errors import UserError
from jaxface.files import write_json, write_tensors
from jaxface.models.encoder import Encoder, random_encoder, use_attention
from jaxface.models.heads import Classifier
from jaxface.models.tree import Structure, flatten
from jaxface.models.variants import get_variant
from jaxface.objectives.losses import get_loss
from jaxface.runs.config import RANDOM, Config, differences, to_dict

Arrays = dict[str, Any]

FREE = (
    *("after", "out", "name", "log_every", "checkpoint_minutes", "report", "cluster", "bad_steps"),
    *("accumulate", "data.workers", "encoder.remat"),
)
"""Options that may change between two parts of one run: they decide what is written, or how fast and in how much memory it trains."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """A model taken apart by what happens to its arrays.

    Attributes:
      structure: the model without its arrays.
      trained: what gradients change.
      statistics: batch norms' running statistics.
      frozen: the rest.
      groups: the learning-rate group of each trained name.
    """

    structure: Structure
    trained: Arrays
    statistics: Arrays
    frozen: Arrays
    groups: dict[str, Group]

    def build(self, changed: Mapping[str, Any] | None = None) -> Classifier:
        """The model, with some arrays replaced by `changed`."""
        return self.structure.build(self.frozen, self.statistics, self.trained, changed or {})


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
    weights = config.encoder.weights
    if weights == RANDOM:
        return random_encoder(get_variant(config.encoder.variant), config.seed), None
    if weights is None:
        raise UserError(
            f"method {config.method.name} needs an encoder: --encoder.weights FILE_OR_RUN (or the word '{RANDOM}' to train from nothing)"
        )
    if Path(weights).is_dir():
        model = load_run(weights)[1]
        return merge(model.encoder), model
    return weights_file.load_encoder(weights), None


def make_parts(config: Config) -> Parts:
    """The model that the configuration describes, before training, taken apart."""
    encoder, previous = base_model(config)
    method = get_method(config.method.name)
    rngs = nnx.Rngs(config.seed)
    encoder, groups = adapt_with_groups(encoder, method.name, dataclasses.replace(config.method.options, num_tasks=len(config.tasks)), rngs)
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
    config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, weights=RANDOM))
    jax.eval_shape(lambda: made.append(make_parts(config)))
    arrays = {
        field: {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in getattr(made[0], field).items()}
        for field in ("trained", "statistics", "frozen")
    }
    return dataclasses.replace(made[0], **arrays)


def take_apart(model: Classifier, groups: list[Group], dtype: DTypeLike = jnp.float32) -> Parts:
    """Sorts a model's arrays by the groups of a method; frozen matrices rest in `dtype`."""
    arrays, structure = flatten(model)
    parameters = [name for name in arrays if issubclass(structure.kinds[name], nnx.Param)]
    found = group_parameters(parameters, groups)
    trained = {name: arrays[name] for name in found}
    statistics = {name: leaf for name, leaf in arrays.items() if structure.kinds[name] is nnx.BatchStat}
    frozen = {
        name: leaf.astype(dtype) if name.endswith(("kernel", "base")) else leaf
        for name, leaf in arrays.items()
        if name not in found and name not in statistics
    }
    return Parts(structure, trained, statistics, frozen, found)


def _take_heads(model: Classifier, previous: Classifier) -> None:
    """Starts each head from the earlier run's head of the same task and shape."""
    for task in model.heads:
        if task in previous.heads:
            mine, theirs = flatten(model.heads[task]), flatten(previous.heads[task])[0]
            if {k: v.shape for k, v in mine[0].items()} == {k: v.shape for k, v in theirs.items()}:
                model.heads[task] = mine[1].build(theirs)


def fingerprint(arrays: Mapping[str, Any]) -> str:
    """SHA-256 over the names and bytes of the arrays, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


def save_best(folder: Path, parts: Parts, trained: Arrays, statistics: Arrays, info: dict[str, Any], base_hash: str) -> None:
    """Writes what trained, and where the rest comes from, into `best/`."""
    arrays = {name: np.asarray(leaf) for name, leaf in {**trained, **statistics}.items()}
    record = {"base_sha256": base_hash, **info}
    write_tensors(folder / "best" / "trained.safetensors", arrays, {"info": json.dumps(record)})
    write_json(folder / "best" / "info.json", record)


def read_config(folder: str | Path) -> Config:
    """The configuration of a run folder. Raises UserError if it is none."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it has no config.json")
    try:
        return from_dict(Config, json.loads(path.read_text()))
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: not a configuration of this version ({error})") from error


def check_same_config(folder: Path, config: Config) -> bool:
    """Whether the folder holds this run already. Raises UserError if it holds a run of another configuration."""
    if not (folder / "config.json").exists():
        return False
    names = [name for name in differences(to_dict(config), to_dict(read_config(folder))) if not name.startswith(FREE)]
    if names:
        raise UserError(
            f"{folder} belongs to another configuration (different: {', '.join(names)}): choose another --name, or remove that folder"
        )
    return True


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps other commands out of a run folder, and clears away what a killed one left half written. Raises UserError if one is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{folder}: another command is training there: wait for it, or choose another --name") from None
        for left in folder.rglob(".*.partial"):
            left.unlink(missing_ok=True)
        yield
    finally:
        os.close(handle)


def load_run(folder: str | Path) -> tuple[Config, Classifier]:
    """A run's configuration and its best model.

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
    return config, parts.build({name: jnp.asarray(array) for name, array in arrays.items()})


def load_encoder(path: str | Path, **options: Any) -> Encoder:
    """A run's best encoder, its adapters merged; or a checkpoint's, as `jaxface.weights.load_encoder` with its options.

    Raises UserError as `load_run`, or as that.
    """
    if Path(path).is_dir():
        return merge(load_run(path)[1].encoder)
    return weights_file.load_encoder(path, **options)


def from_dict(kind: Any, value: Any) -> Any:
    """A value of a type made of dataclasses, tuples, unions and plain types, from JSON."""
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        if value is None:
            return None
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        return kind(**{name: from_dict(hints[name], item) for name, item in value.items() if name != "after"})
    if typing.get_origin(kind) is tuple:
        return tuple(value)
    return value
