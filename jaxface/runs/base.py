"""The base weights of a run: known by what they are, found wherever they lie.

Their fingerprint is a SHA-256 over every array as it is stored, in float32, which holds all of bfloat16 and float16: the dtype and the
device that a run computes with do not matter, nor does the layout of the file. Of a base that is a run itself it is over what that run
trained and over its own base; of random weights, over what they are drawn from.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxface import weights
from jaxface.digests import combined
from jaxface.errors import UserError
from jaxface.files import DIGESTS
from jaxface.models.encoder import Encoder, random_encoder
from jaxface.models.heads import Classifier
from jaxface.models.tree import arrays_of
from jaxface.models.variants import get_variant
from jaxface.runs.config import RANDOM, Config
from jaxface.runs.parts import fingerprint

PACKED = "base"
"""Where a run that was packed has its base weights (`python -m jaxface.export RUN --to run`)."""
PLACES = "JAXFACE_WEIGHTS"
"""Environment variable with files of base weights, runs, or folders of them, as PATH has folders."""


class Base(NamedTuple):
    """What a run starts from.

    Attributes:
      encoder: in float32, without adapters.
      previous: the whole model, where that is another run's.
      fingerprint: see above.
      path: where it was found; None for random weights.
    """

    encoder: Encoder
    previous: Classifier | None
    fingerprint: str
    path: Path | None


def load_base(config: Config, path: Path | None = None, places: Sequence[Path] = ()) -> Base:
    """What the configuration says to start from, or, in its place, what lies at `path`.

    Args:
      places: further places to look for the base of a base.

    Raises UserError if no weights are named for a method that adapts some, or if they cannot be read.
    """
    source = config.encoder.weights
    if source == RANDOM:
        variant = get_variant(config.encoder.variant)
        return Base(random_encoder(variant, config.seed), None, _random_fingerprint(dataclasses.asdict(variant), config.seed), None)
    if source is None:
        raise UserError(
            f"method {config.method.name} needs an encoder: --encoder.weights FILE_OR_RUN (or the word '{RANDOM}' to train from nothing)"
        )
    path = path or Path(source)
    if path.is_dir():
        from jaxface.runs.model import load_trained  # a run whose base is a run, and so on

        trained = load_trained(path, places, dtype=np.float32)
        return Base(trained.merged().encoder, trained.model, trained.fingerprint, path)
    encoder = weights.load_encoder(path)
    return Base(encoder, None, fingerprint({name: np.asarray(leaf, np.float32) for name, leaf in arrays_of(encoder).items()}), path)


def _random_fingerprint(variant: Mapping[str, Any], seed: int) -> str:
    """Of the random bits that the weights are made of, which are the same on every device."""
    with jax.ensure_compile_time_eval():  # where only shapes are asked for, too
        bits = np.asarray(jax.random.bits(jax.random.key(seed), (64,)))
    return combined({"variant": json.dumps(variant, sort_keys=True), "bits": fingerprint({"bits": bits})})


def find_bases(config: Config, folder: Path, info: Mapping[str, Any], places: Sequence[Path] = ()) -> Iterator[Base]:
    """The base weights that may be a run's: from `places`, the environment, beside the run as when it was trained, the path as given.

    Raises UserError if there is nothing at any of these places.
    """
    if config.encoder.weights in (None, RANDOM):
        yield load_base(config)
        return
    recorded = Path(str(config.encoder.weights))
    found = [path for path in _places(recorded, folder, info, places) if path.exists()]
    if not found:
        raise UserError(
            f"{folder} was trained on base weights that are not at {recorded}: --weights FILE (or {PLACES}=FILE) says where they are"
        )
    for path in dict.fromkeys(path.resolve() for path in found):
        yield load_base(config, path, places)


def _places(recorded: Path, folder: Path, info: Mapping[str, Any], places: Sequence[Path]) -> Iterator[Path]:
    packed = folder / PACKED
    yield from sorted(path for path in packed.iterdir() if path.name != DIGESTS) if packed.is_dir() else ()
    for place in (*places, *map(Path, filter(None, os.environ.get(PLACES, "").split(os.pathsep)))):
        inside = place.is_dir() and not (place / "config.json").is_file()
        yield place / recorded.name if inside else place
    if info.get("base_relative"):
        yield folder / info["base_relative"]
    yield recorded
    if not recorded.is_absolute():
        here = folder.resolve()
        yield from (parent / recorded for parent in (here, *here.parents[:4]))
    yield from (folder / recorded.name, folder.parent / recorded.name)


def base_info(config: Config, base: Base, folder: Path) -> dict[str, Any]:
    """What `best/info.json` of a run folder says of its base weights: the path as given, the same from the folder, the fingerprint."""
    relative = None if base.path is None else os.path.relpath(base.path.resolve(), folder.resolve())
    return {"base": config.encoder.weights, "base_relative": relative, "base_sha256": base.fingerprint}
