"""One adapter of a server: what a run adds to the encoder that all share, apart from that encoder.

A model is cut in two. Its blocks are the shared encoder's with a low-rank update of each linear, which differs from sample to sample of a
batch. What follows the blocks (pool, projection, heads) is small and may be of any kind; each adapter's own runs on its rows alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxface.adapters.options import AdapterOptions
from jaxface.adapters.updates import Updates, updates_of
from jaxface.data.tasks import Task
from jaxface.errors import UserError
from jaxface.models.encoder import Encoder
from jaxface.models.heads import Classifier
from jaxface.models.precision import resolved
from jaxface.models.tree import Structure, flatten, shallow_copy
from jaxface.prediction.adapter_folders import AdapterFolder, Below, folder_kind, run_kind
from jaxface.prediction.doubt import Doubt
from jaxface.runs.base import Base
from jaxface.runs.config import Config, MethodOptions
from jaxface.runs.model import make_parts
from jaxface.runs.parts import Parts

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
      updates: of the blocks' linears.
      rank: of its updates, 0 for an adapter of the heads or the pool alone.
      kind: of what follows the blocks: adapters of one kind share programs.
      structure: of that.
      arrays: of that, those of the shared encoder among them.
      bytes: of the arrays that are its own.
      doubt: how sure its answers have to be, if that was asked.
    """

    name: str
    digest: str
    tasks: tuple[Task, ...]
    temperatures: Mapping[str, float]
    updates: Updates
    rank: int
    kind: str
    structure: Structure
    arrays: dict[str, Any]
    bytes: int
    doubt: Doubt | None = None


class Shared:
    """The encoder that all adapters of a server stand on, and what they must have in common with it.

    Attributes:
      base: the loaded base weights.
      encoder: as it computes: its precision, its frozen kernels in fewer bits, its kernels.
      image_size: side in pixels of a crop.
      framing: how crops come to that size, see `jaxface.data.framing`.
    """

    def __init__(self, config: Config, base: Base) -> None:
        self.base, self.config = base, config
        probe = replace(config, method=MethodOptions("lp", AdapterOptions()))
        self.encoder: Encoder = make_parts(probe, base).build().encoder
        self.encoder.loop = "scan"
        self.image_size, self.framing = config.encoder.image_size or self.encoder.config.image_size, self.encoder.config.framing
        self._parts: dict[str, Parts] = {}

    @classmethod
    def of(cls, folder: Path, weights: Path | None) -> Shared:
        """What an adapter's folder stands on. Raises UserError as `load_trained`."""
        return cls(*folder_kind(folder).base(folder, weights))

    def load(self, name: str, folder: Path) -> Adapter:
        """The adapter of a folder.

        Raises UserError for one that stands on another base, or changes more of the encoder than updates of its kernels.
        """
        kind = self._fitting(folder)
        loaded = kind.load(folder, Below(self.base, self.encoder, self.parts_of))
        arrays, structure = tail_of(loaded.model)
        own = {key: np.asarray(array) for key, array in arrays.items() if key not in loaded.frozen}
        updates = updates_of(loaded.model.encoder, str(folder))
        rank = next(iter(updates.values())).a.shape[-1]
        size = sum(array.nbytes for array in [*jax.tree.leaves(updates), *own.values()])
        about = (name, loaded.digest, loaded.tasks, loaded.temperatures, updates, rank)
        return Adapter(*about, kind.kind(folder), structure, arrays | own, size)

    def check(self, folder: Path) -> None:
        """Raises UserError for an adapter that cannot stand on the shared encoder, as far as that shows without reading what it trained."""
        kind = self._fitting(folder)
        self.base.require(folder, kind.fingerprint(folder))

    def _fitting(self, folder: Path) -> AdapterFolder:
        """The kind of a folder whose encoder computes as this one."""
        kind = folder_kind(folder)
        try:
            self.require_alike(kind.config(folder))
        except UserError as error:
            raise error if str(folder) in str(error) else UserError(f"{folder}: {error}") from error
        if (framing := kind.framing(folder)) != self.framing:
            raise UserError(f"{folder}: it sees faces as {framing}, this server as {self.framing}: serve it with others of its own")
        return kind

    def kind_of(self, folder: Path) -> str:
        """Of a folder, what `Adapter.kind` is."""
        return folder_kind(folder).kind(folder)

    def parts_of(self, config: Config) -> Parts:
        """A run's model before training: made once for all runs of one kind. Raises UserError for one that does not fit."""
        kind = run_kind(config)
        if kind not in self._parts:
            parts = make_parts(config, self.base)
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
            ("precision", resolved(self.config.encoder.precision), resolved(config.encoder.precision)),
        ):
            if ours != theirs:
                raise UserError(f"its {what} is {theirs}, this server's {ours}: serve it with others of its own")


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
