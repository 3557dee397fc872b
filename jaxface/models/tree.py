"""Modules as flat dictionaries: every array under its dotted path (`encoder.stages.0.attn.qkv.kernel.a`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from flax import nnx


class Structure(NamedTuple):
    """All of a module but its arrays.

    Attributes:
      names: the dotted path of every array, in the order of the tree.
      kinds: the class of the variable that holds it (`nnx.Param`, `nnx.BatchStat`, ...).
      tree: the tree itself.
    """

    names: tuple[str, ...]
    kinds: dict[str, type[nnx.Variable]]
    tree: Any

    def build(self, *parts: Mapping[str, Any]) -> Any:
        """A module with its arrays taken from the dictionaries, which together hold every name."""
        arrays = {name: array for part in parts for name, array in part.items()}
        return jax.tree.unflatten(self.tree, [arrays[name] for name in self.names])


def flatten(module: Any) -> tuple[dict[str, Any], Structure]:
    """A module's arrays by name, and what is left of it."""
    variables = jax.tree_util.tree_flatten_with_path(module, is_leaf=lambda x: isinstance(x, nnx.Variable))[0]
    kinds = {_name(path): type(variable) for path, variable in variables if isinstance(variable, nnx.Variable)}
    leaves, tree = jax.tree_util.tree_flatten_with_path(module)
    arrays = {_name(path[:-1]): leaf for path, leaf in leaves}
    return arrays, Structure(tuple(arrays), kinds, tree)


def arrays_of(module: Any) -> dict[str, Any]:
    """A module's arrays by name."""
    return flatten(module)[0]


def _name(path: Any) -> str:
    return ".".join(str(getattr(key, "name", getattr(key, "idx", getattr(key, "key", key)))) for key in path)


def shallow_copy(module: Any) -> Any:
    """The same module tree around the same arrays."""
    return jax.tree.map(lambda leaf: leaf, module)
