"""What `jax.shard_map` checks: over which axes of the mesh an array's values differ."""

from __future__ import annotations

from typing import Any

import jax


def varying_alike(*values: Any) -> tuple[Any, ...]:
    """The values, each marked as different on every device of all axes over which any of them differs.

    A custom backward pass gives gradients that differ as its inputs together do; the marks' own gradient is the sum over those axes,
    which a parameter that is the same everywhere asks for. Outside of `shard_map` nothing happens.
    """
    leaves, tree = jax.tree.flatten(values)
    axes = frozenset().union(*map(_axes, leaves))
    if axes:
        leaves = [jax.lax.pcast(leaf, tuple(axes - _axes(leaf)), to="varying") if axes - _axes(leaf) else leaf for leaf in leaves]
    return jax.tree.unflatten(tree, leaves)


def _axes(value: Any) -> frozenset[str]:
    kind = jax.typeof(value)
    return kind.mat.varying if hasattr(kind, "mat") else getattr(kind, "vma", frozenset())
