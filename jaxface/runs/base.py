"""The base weights of a run: known by what they are, found wherever they lie.

Their fingerprint is a SHA-256 over every array as it is stored, in float32, which holds all of bfloat16 and float16: the dtype and the
device that a run computes with do not matter, nor does the layout of the file. Of a base that is a run itself it is over what that run
trained and over its own base; of random weights, over what they are drawn from.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxface.data.framing import PLAIN, noted
from jaxface.digests import combined
from jaxface.errors import UserError
from jaxface.files import DIGESTS
from jaxface.models.encoder import Encoder
from jaxface.models.heads import Classifier
from jaxface.runs.config import RANDOM, Config
from jaxface.runs.parts import fingerprint
from weights_convert.folders import weights_in

PACKED = "base"
"""Where a run that was packed has its base weights (`python -m jaxface.export RUN --to run`)."""
PLACES = "JAXFACE_WEIGHTS"
"""Environment variable with files of base weights, runs, or folders of them, as PATH has folders."""


class Base(NamedTuple):
    """What a run starts from.

    Attributes:
      encoder: in float32, without adapters; None for random weights that are not drawn yet.
      previous: the whole model, where that is another run's.
      fingerprint: see above.
      path: where it was found; None for random weights.
    """

    encoder: Encoder
    previous: Classifier | None
    fingerprint: str
    path: Path | None

    def require(self, folder: Path, fingerprint: object) -> None:
        """Raises UserError for a folder that stands on base weights with another fingerprint."""
        if fingerprint != self.fingerprint:
            raise UserError(f"{folder} was trained on other base weights than those at {self.path or RANDOM}")


def is_run(path: Path) -> bool:
    """Whether a path is a run folder, and no checkpoint: these are folders, too, as Hugging Face's libraries write them."""
    return path.is_dir() and weights_in(path) is None


_OPENED: ContextVar[tuple[Path, ...]] = ContextVar("runs that are opened as bases, each for the one before", default=())


@contextmanager
def opened_as_base(path: Path) -> Iterator[None]:
    """While a run is opened as the base of another. Raises UserError where it is, by whatever way, its own."""
    whole, above = path.resolve(), _OPENED.get()
    if whole in above:
        raise UserError(f"{path}: a run that begins from itself, by way of its base weights: --weights FILE says where its own are")
    before = _OPENED.set((*above, whole))
    try:
        yield
    finally:
        _OPENED.reset(before)


def random_fingerprint(variant: Mapping[str, Any], seed: int) -> str:
    """Of the random bits that the weights are made of, which are the same on every device."""
    variant = {name: value for name, value in variant.items() if name != "framing"}  # which is no part of any weights
    return combined({"variant": json.dumps(variant, sort_keys=True), "bits": fingerprint({"bits": _random_bits(seed)})})


@lru_cache(maxsize=64)
def _random_bits(seed: int) -> np.ndarray:
    with jax.ensure_compile_time_eval():  # where only shapes are asked for, too
        return np.asarray(jax.jit(lambda seed: jax.random.bits(jax.random.key(seed), (64,)))(seed))  # one program


def find_bases(config: Config, folder: Path, info: Mapping[str, Any], places: Sequence[Path] = ()) -> Iterator[Path | None]:
    """Where a run's base weights may lie: `places`, the environment, beside the run as when it was trained, the path given; None for none.

    Raises UserError if there is nothing at any of these places, or nothing at one that was named.
    """
    missing = next((place for place in places if not place.exists()), None)
    if missing is not None:
        raise UserError(f"{missing}: no such file or folder: expected base weights of {folder}")
    if config.encoder.weights in (None, RANDOM):
        yield None
        return
    recorded = Path(str(config.encoder.weights))
    found = [path for path in _places(recorded, folder, info, places) if path.exists()]
    if not found:
        raise UserError(
            f"{folder} was trained on base weights that are not at {recorded}: --weights FILE (or {PLACES}=FILE) says where they are"
        )
    yield from dict.fromkeys(path.resolve() for path in found)


def _places(recorded: Path, folder: Path, info: Mapping[str, Any], places: Sequence[Path]) -> Iterator[Path]:
    packed = folder / PACKED
    yield from sorted(path for path in packed.iterdir() if path.name != DIGESTS) if packed.is_dir() else ()
    for place in (*places, *map(Path, filter(None, os.environ.get(PLACES, "").split(os.pathsep)))):
        inside = is_run(place) and not (place / "config.json").is_file()
        yield place / recorded.name if inside else place
    if info.get("base_relative"):
        yield folder / info["base_relative"]
    yield recorded
    if not recorded.is_absolute():
        here = folder.resolve()
        yield from (parent / recorded for parent in (here, *here.parents[:4]))
    yield from (folder / recorded.name, folder.parent / recorded.name)


def refuse_idle_places(folder: Path, base: Path | None, places: Sequence[Path]) -> None:
    """Raises UserError where somebody said where the base weights are of a run that has none, and so no `base`."""
    if places and base is None:
        named = " ".join(map(str, places))
        raise UserError(f"weights {named}: it has no effect, {folder} began from no weights of a file: leave it out")


def base_info(config: Config, base: Base, folder: Path, framing: str | None = None) -> dict[str, Any]:
    """What `best/info.json` of a run folder says of its base weights: the path as given, the same from the folder, the fingerprint; and
    how it sees pictures, which is its encoder's way if None."""
    relative = None if base.path is None else os.path.relpath(base.path.resolve(), folder.resolve())
    return {"base": config.encoder.weights, "base_relative": relative, "base_sha256": base.fingerprint} | noted(
        framing or base.encoder.config.framing
    )


def framing_of(info: Mapping[str, Any]) -> str:
    """How a run sees pictures, as its `best/info.json` says, or an export's manifest."""
    return str(info.get("framing", PLAIN))
