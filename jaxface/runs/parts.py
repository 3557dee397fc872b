"""A model taken apart by what training does to its arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from jaxface.adapters.methods import Group, group_parameters
from jaxface.models.heads import Classifier
from jaxface.models.tree import Structure, flatten

Arrays = dict[str, Any]


@dataclass(frozen=True)
class Parts:
    """A model taken apart by what happens to its arrays.

    Attributes:
      structure: the model without its arrays.
      trained: what gradients change.
      statistics: what a run keeps though no gradient changes it: batch norms' running statistics, and what updates started from.
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


def take_apart(model: Classifier, groups: Sequence[Group], dtype: DTypeLike = jnp.float32) -> Parts:
    """Sorts a model's arrays by the groups of a method: what trains is float32, frozen matrices are held in `dtype`."""
    arrays, structure = flatten(model)
    parameters = [name for name in arrays if issubclass(structure.kinds[name], nnx.Param)]
    found = group_parameters(parameters, groups)
    trained = {name: arrays[name].astype(jnp.float32) for name in found}
    statistics = {name: leaf for name, leaf in arrays.items() if issubclass(structure.kinds[name], nnx.BatchStat)}
    frozen = {
        name: leaf.astype(dtype) if name.endswith(("kernel", "base")) else leaf
        for name, leaf in arrays.items()
        if name not in found and name not in statistics
    }
    return Parts(structure, trained, statistics, frozen, found)


def fingerprint(arrays: Mapping[str, Any]) -> str:
    """SHA-256 over the names and bytes of the arrays, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()
