"""The kinds of folders that an adapter is read from: a run, and what `jaxface.export --to peft` made of one; one's own is an entry."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from jaxface.adapters.peft_config import CONFIG
from jaxface.adapters.peft_format import TENSORS, load_peft
from jaxface.data.framing import PLAIN
from jaxface.data.task_files import task_from
from jaxface.data.tasks import Task
from jaxface.errors import UserError
from jaxface.exports.exporter import read_manifest
from jaxface.exports.tensors import HEADS
from jaxface.files import read_object
from jaxface.models.encoder import Encoder
from jaxface.models.heads import TOKENS, Classifier, with_torch_heads
from jaxface.models.tree import arrays_of
from jaxface.registry import Registry
from jaxface.runs.base import Base, framing_of
from jaxface.runs.config import Config, EncoderOptions
from jaxface.runs.folder import read_config
from jaxface.runs.model import load_base, load_on, load_trained
from jaxface.runs.parts import Parts
from jaxface.runs.saved_config import to_dict
from jaxface.runs.temperatures import FILE as TEMPERATURES
from jaxface.runs.temperatures import temperatures_from

MANIFEST = "manifest.json"


class Loaded(NamedTuple):
    """What a folder holds, on the encoder that all share.

    Attributes:
      model: the classifier.
      digest: SHA-256 of what was trained.
      tasks: what it predicts.
      temperatures: per task.
      frozen: names of the model's arrays that are not its own.
    """

    model: Classifier
    digest: str
    tasks: tuple[Task, ...]
    temperatures: Mapping[str, float]
    frozen: frozenset[str]


class Below(NamedTuple):
    """What loads on a server: the base weights, the encoder made of them, and what makes parts of a run's configuration."""

    base: Base
    encoder: Encoder
    parts_of: Callable[[Config], Parts]


class AdapterFolder(NamedTuple):
    """A kind of folder.

    Attributes:
      files: what an adapter is made of; the first tells the kind.
      base: (folder, a file of base weights or None) -> a configuration of the encoder below it, and its base.
      config: folder -> a configuration of the encoder that it needs.
      fingerprint: folder -> that of the base weights that it needs.
      kind: folder -> a text that is the same for those that differ in nothing but their arrays.
      load: (folder, what is below it) -> its model.
      framing: folder -> how it sees faces, see `jaxface.data.framing`.

    All raise UserError for a folder that is not whole, and read nothing that was trained, but for `load`.
    """

    files: tuple[str, ...]
    base: Callable[[Path, Path | None], tuple[Config, Base]]
    config: Callable[[Path], Config]
    fingerprint: Callable[[Path], object]
    kind: Callable[[Path], str]
    load: Callable[[Path, Below], Loaded]
    framing: Callable[[Path], str] = lambda folder: PLAIN


def _run_base(folder: Path, weights: Path | None) -> tuple[Config, Base]:
    trained = load_trained(folder, () if weights is None else (weights,))
    return trained.config, load_base(trained.config, trained.base, trained.places)


def run_kind(config: Config) -> str:
    """The same for runs that differ in nothing but their arrays."""
    said = to_dict(config)
    said["encoder"] |= {"weights": None, "remat": None, "loop": None}
    return json.dumps({key: said[key] for key in ("encoder", "method", "head", "tasks", "losses")}, sort_keys=True)


def _load_run(folder: Path, below: Below) -> Loaded:
    trained = load_on(folder, below.base, below.parts_of)
    return Loaded(trained.model, trained.digest, trained.tasks, trained.temperatures, frozenset(below.parts_of(trained.config).frozen))


def _manifest(folder: Path) -> dict[str, Any]:
    """What an export to PEFT says of itself."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder}: PEFT's adapter without a {MANIFEST}, which says what it predicts: export a run (--to peft)")
    said = read_object(path)
    if not isinstance(said.get("base_sha256"), str) or not isinstance(said.get("tasks"), dict):
        raise UserError(f"{path}: says no tasks, or no base weights (base_sha256): export the run again")
    return said


def _peft_config(folder: Path) -> Config:
    try:
        size = int(_manifest(folder)["input"]["images"]["shape"][1])
    except (KeyError, TypeError, ValueError, IndexError):
        raise UserError(f"{folder / MANIFEST}: says no size of images: export the run again") from None
    return Config(encoder=EncoderOptions(image_size=size))


def _peft_base(folder: Path, weights: Path | None) -> tuple[Config, Base]:
    if weights is None:
        raise UserError(f"{folder}: PEFT's adapter, and no run beside it: --base FILE says which weights it stands on")
    size = _peft_config(folder).encoder.image_size
    config = Config(encoder=EncoderOptions(weights=str(weights), image_size=size))
    return config, load_base(config)


def _peft_kind(folder: Path) -> str:
    said, config = _manifest(folder), read_object(folder / CONFIG)
    config.pop("base_model_name_or_path", None)
    try:
        with safe_open(folder / HEADS, "numpy") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / HEADS}: cannot be read ({error}): export the run again") from None
    return json.dumps(["peft", config, said["tasks"], said.get("tokens"), shapes], sort_keys=True)


def _load_peft(folder: Path, below: Below) -> Loaded:
    said = read_manifest(folder, (CONFIG, TENSORS, HEADS))  # which are what was written; base weights may lie beside them
    below.base.require(folder, said.get("base_sha256"))
    tokens, digest = said.get("tokens", "patches"), said.get("model_sha256")
    try:
        temperatures = temperatures_from(said.get("temperatures", {}))
        if not isinstance(tokens, str) or not isinstance(digest, str) or not said["tasks"]:
            raise ValueError("expected tasks, tokens and model_sha256")
        TOKENS.get(tokens)
        tasks = tuple(task_from(name, value) for name, value in said["tasks"].items())
    except (ValueError, UserError) as error:
        raise UserError(f"{folder / MANIFEST}: {error}: export the run again") from None
    encoder = load_peft(below.encoder, folder)
    model = _with_heads(encoder, tasks, tokens, folder / HEADS)
    shared = {id(array) for array in arrays_of(below.encoder).values()}
    frozen = frozenset(name for name, array in arrays_of(model).items() if id(array) in shared)
    return Loaded(model, digest, tasks, temperatures, frozen)


def _with_heads(encoder: Encoder, tasks: Sequence[Task], tokens: str, path: Path) -> Classifier:
    """The encoder with the heads of a file. Raises UserError where they are not those of the tasks."""
    try:
        tensors = load_file(path)
        odd = next((name for name, array in tensors.items() if array.dtype != np.float32 or not np.isfinite(array).all()), None)
        if odd is not None:
            raise UserError(f"{odd}: expected finite numbers in float32")
        deep, batch_norm = (any(f".{part}." in name for name in tensors) for part in ("hidden", "norm"))
        classes = {task.name: task.width for task in tasks}

        def rows(task: str, part: str) -> tuple[int, ...]:
            return tensors.get(f"{task}.out.{part}", np.empty(())).shape[:1]

        # CORAL's head has one direction and a bias for each threshold
        outputs = {task: "ranks" for task in classes if rows(task, "bias") > rows(task, "weight")}
        heads: dict[str, Any] = {"deep": deep, "batch_norm": batch_norm, "dropout": 0.0, "outputs": outputs}
        return with_torch_heads(Classifier(encoder, classes, **heads, tokens=tokens, rngs=nnx.Rngs(0)), tensors)
    except (OSError, SafetensorError, UserError) as error:
        raise UserError(f"{path}: {error}: export the run again") from None


FOLDERS: Registry[AdapterFolder] = Registry(
    "folder of an adapter",
    {
        "run": AdapterFolder(
            files=("config.json", "best/info.json", "best/trained.safetensors", TEMPERATURES, "evaluation.json"),
            base=_run_base,
            config=read_config,
            fingerprint=lambda folder: read_object(folder / "best" / "info.json").get("base_sha256"),
            kind=lambda folder: run_kind(read_config(folder)),
            load=_load_run,
            framing=lambda folder: framing_of(read_object(folder / "best" / "info.json")),
        ),
        "peft": AdapterFolder(
            files=(CONFIG, TENSORS, HEADS, MANIFEST),
            base=_peft_base,
            config=_peft_config,
            fingerprint=lambda folder: _manifest(folder)["base_sha256"],
            kind=_peft_kind,
            load=_load_peft,
            framing=lambda folder: framing_of(_manifest(folder)),
        ),
    },
)
"""By name; of two that a folder could be, the one registered first."""


def _known_kind(folder: Path) -> AdapterFolder | None:
    return next((kind for _, kind in FOLDERS.items() if (folder / kind.files[0]).is_file()), None)


def folder_kind(folder: Path) -> AdapterFolder:
    """The kind of a folder. Raises UserError for one of none."""
    if (kind := _known_kind(folder)) is None:
        raise UserError(f"{folder}: not a run folder, nor one that `python -m jaxface.export RUN --to peft` wrote")
    return kind


def adapters_in(folder: Path) -> list[Path]:
    """The folders below a folder that are of a known kind, by name. Raises UserError for what is no folder."""
    try:
        return [path for path in sorted(folder.iterdir()) if _known_kind(path)]
    except OSError as error:
        raise UserError(f"{folder}: expected a folder of run folders ({error.strerror})") from None
