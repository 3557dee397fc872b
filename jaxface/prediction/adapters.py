"""One adapter of a server: what a run adds to the encoder that all share, apart from that encoder.

A model is cut in two. Its blocks are the shared encoder's with a low-rank update of each linear, which differs from sample to sample of a
batch. What follows the blocks (pool, projection, heads) is small and may be of any kind; each adapter's own runs on its rows alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxface.adapters.options import AdapterOptions
from jaxface.adapters.updates import Updates, updates_of
from jaxface.data.tasks import Task
from jaxface.errors import UserError
from jaxface.files import read_object
from jaxface.models.encoder import Encoder
from jaxface.models.heads import Classifier
from jaxface.models.tree import Structure, flatten, shallow_copy
from jaxface.prediction.doubt import Doubt
from jaxface.runs.base import Base
from jaxface.runs.config import RANDOM, Config, MethodOptions
from jaxface.runs.folder import read_config
from jaxface.runs.model import Trained, compute_dtype, load_base, load_on, load_trained, make_parts
from jaxface.runs.parts import Parts
from jaxface.runs.saved_config import to_dict

OWN = re.compile(r"^(encoder\.stages\.\d+\..*\.kernel\.(a|b|magnitude|start_a|start_b)|encoder\.(pool|projection)\..*|heads\..*)$")
"""Names of what an adapter may have of its own."""
BEFORE_POOL = ("patch", "class_token", "registers", "positions", "norm_pre", "norm_post")
"""Parts of an encoder that the shared one has done with before the rest begins."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """What a run adds to the shared encoder.

    Attributes:
      name: in the server.
      digest: SHA-256 of what was trained: it names the model.
      tasks: what it predicts.
      temperatures: of `jaxface.evaluate`, per task.
      updates: of the blocks' linears, NumPy arrays.
      kind: of what follows the blocks: adapters of one kind share programs.
      structure: of that.
      arrays: of that, NumPy arrays but for those of the shared encoder.
      doubt: how sure its answers have to be, if that was asked.
    """

    name: str
    digest: str
    tasks: tuple[Task, ...]
    temperatures: Mapping[str, float]
    updates: Updates
    kind: str
    structure: Structure
    arrays: dict[str, Any]
    doubt: Doubt | None = None

    @property
    def rank(self) -> int:
        """Of its updates, 0 for an adapter of the heads or the pool alone."""
        return next(iter(self.updates.values())).a.shape[-1]

    @property
    def bytes(self) -> int:
        """Of the arrays that are its own."""
        own = [array for update in self.updates.values() for array in update]
        return sum(array.nbytes for array in [*own, *self.arrays.values()] if isinstance(array, np.ndarray))


class Shared:
    """The encoder that all adapters of a server stand on, and what they must have in common with it.

    Attributes:
      base: the loaded base weights.
      encoder: as it computes: its dtype, its frozen kernels in fewer bits, its kernels.
      image_size: side in pixels of a crop.
    """

    def __init__(self, config: Config, base: Base) -> None:
        self.base, self.config, self.dtype = base, config, compute_dtype(config)
        probe = replace(config, method=MethodOptions("lp", AdapterOptions()))
        self.encoder: Encoder = make_parts(probe, base, self.dtype).build().encoder
        self.encoder.loop = "scan"
        self.image_size = config.encoder.image_size or self.encoder.config.image_size
        self._parts: dict[str, Parts] = {}

    @classmethod
    def of(cls, folder: Path, weights: Path | None) -> Shared:
        """What a run stands on. Raises UserError as `load_trained`."""
        trained = load_trained(folder, () if weights is None else (weights,))
        return cls(trained.config, load_base(trained.config, trained.base, trained.places))

    def load(self, name: str, folder: Path) -> Adapter:
        """A run's adapter.

        Raises UserError for a run that stands on another base, or changes more of the encoder than updates of its kernels.
        """
        return self.adapter(name, load_on(folder, self.base, self._parts_of))

    def adapter(self, name: str, trained: Trained) -> Adapter:
        """The adapter of a model on the same base."""
        parts = self._parts_of(trained.config)
        arrays, structure = tail_of(trained.model)
        own = {key: array if key in parts.frozen else np.asarray(array) for key, array in arrays.items()}
        tasks, kind = trained.tasks, self._kind(trained.config)
        updates = updates_of(trained.model.encoder, str(trained.folder))
        return Adapter(name, trained.digest, tasks, trained.temperatures, updates, kind, structure, own)

    def kind_of(self, folder: Path) -> str:
        """Of a run, what `Adapter.kind` is."""
        return self._kind(read_config(folder))

    def _parts_of(self, config: Config) -> Parts:
        """A run's model before training: made once for all runs of one kind. Raises UserError for one that does not fit."""
        self.require_alike(config)
        kind = self._kind(config)
        if kind not in self._parts:
            parts = make_parts(config, self.base, self.dtype)
            foreign = [name for name in {**parts.trained, **parts.statistics} if not OWN.match(name)]
            if foreign:
                said = f"method {config.method.name} trains {foreign[0]} of the encoder itself"
                raise UserError(f"{said}: only what stands beside it can be shared")
            self._parts[kind] = parts
        return self._parts[kind]

    def require_alike(self, config: Config) -> None:
        """Raises UserError for a run whose encoder computes otherwise than the shared one."""
        for what, ours, theirs in (
            ("image size", self.image_size, config.encoder.image_size or self.encoder.config.image_size),
            ("frozen kernels", self.config.encoder.base, config.encoder.base),
            ("dtype", jnp.dtype(self.dtype).name, jnp.dtype(compute_dtype(config)).name),
        ):
            if ours != theirs:
                raise UserError(f"its {what} is {theirs}, this server's {ours}: serve it with others of its own")

    def _kind(self, config: Config) -> str:
        """Runs of one kind differ in nothing but their arrays."""
        said = to_dict(config)
        said["encoder"] |= {"weights": None, "remat": None, "loop": None}
        return json.dumps({key: said[key] for key in ("encoder", "method", "head", "tasks", "losses")}, sort_keys=True)


def tail_of(model: Classifier) -> tuple[dict[str, Any], Structure]:
    """What follows the blocks of a model, flattened: its arrays, and the rest."""
    model, encoder = shallow_copy(model), shallow_copy(model.encoder)
    for part in BEFORE_POOL:
        setattr(encoder, part, None)
    encoder.stages = nnx.List([])
    model.encoder = encoder
    return flatten(model)


def run_tail(structure: Structure, arrays: Mapping[str, Any], tokens: jax.Array) -> dict[str, jax.Array]:
    """Logits of each task for an adapter's own tokens [B, N, D]."""
    model = structure.build(arrays)
    return model.classify(model.reduced(model.encoder.pooled(tokens)))


def check_run(shared: Shared, folder: Path) -> None:
    """Raises UserError for a run that cannot stand on the shared encoder, as far as that shows without reading what it trained."""
    try:
        shared.require_alike(read_config(folder))
    except UserError as error:
        raise error if str(folder) in str(error) else UserError(f"{folder}: {error}") from error
    if read_object(folder / "best" / "info.json").get("base_sha256") != shared.base.fingerprint:
        raise UserError(f"{folder} was trained on other base weights than those at {shared.base.path or RANDOM}")
