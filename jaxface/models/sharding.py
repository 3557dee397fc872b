"""Models under a mesh whose axes are explicit, as `jax.make_mesh` makes them: inside, the compiler places arrays by itself."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, PartitionSpec

F = TypeVar("F", bound=Callable[..., Any])


def any_mesh(method: F) -> F:
    """Decorator of a method (self, x [B, ...]): where x is placed over explicit axes, its results are placed as x's batch is."""

    def call(self: Any, x: Any, *args: Any) -> Any:
        placed = getattr(jax.typeof(x), "sharding", None) if isinstance(x, jax.Array) else None
        if AxisType.Explicit not in getattr(getattr(placed, "mesh", None), "axis_types", ()):
            return method(self, x, *args)
        found, more = (_shapes(method, self, x, rows, args) for rows in (x.shape[0], x.shape[0] + 1))
        batch = placed.spec[0] if len(placed.spec) else None

        def spec(a: Any, b: Any) -> PartitionSpec:
            return PartitionSpec(*(batch if m != n else None for m, n in zip(a.shape, b.shape, strict=True)))

        specs = jax.tree.map(spec, found, more)
        return jax.sharding.auto_axes(lambda self, x: method(self, x, *args), out_sharding=specs)(self, x)

    wrapped: Any = functools.wraps(method)(call)
    return wrapped


def _shapes(method: Callable[..., Any], self: Any, x: jax.Array, rows: int, args: tuple[Any, ...]) -> Any:
    """The shapes of the results for a batch of `rows`: the axis that changes with it is the batch's."""
    images = jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        return jax.eval_shape(lambda x: method(_unplaced(self), x, *args), images)


def _unplaced(module: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), module)
