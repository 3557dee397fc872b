"""What each task has of its own: low-rank updates of kernels (MTLoRA, Agiza et al. 2024; thesis, section 3.6.1), or a whole pool."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxface.adapters.low_rank import DownProjection, UpProjection
from jaxface.kernels.dropout import drop
from jaxface.kernels.matmul import PRODUCT, unrounded_product


class TaskLowRank(nnx.Module):
    """A frozen kernel W with T updates: x becomes T results x W + x A_t B_t, one per task, along a new leading axis.

    An input that already has that axis keeps it: each task's x meets its own update. W is applied once to what the tasks share.

    Attributes:
      base: [in, out], frozen.
      a: [T, in, groups * rank]
      b: [T, rank, out], zero at first.
      keys: [B] random keys of a training step with dropout, else None: see `jaxface.adapters.dropout_keys`.
      shared_a, shared_b: one more update, which MTLoRA's module also has: not used, since nothing task-agnostic follows; or None.
    """

    def __init__(
        self, base: jax.Array, rank: int, tasks: int, *, groups: int = 1, shared_set: bool = False, dropout: float = 0.0, rngs: nnx.Rngs
    ) -> None:
        *front, inputs, outputs = base.shape
        self.base = nnx.Param(base)
        self.dropout, self.keys = dropout, nnx.data(None)
        self.a = DownProjection(jax.random.normal(rngs.params(), (*front, tasks, inputs, groups * rank)) / rank)
        self.b = UpProjection(jnp.zeros((*front, tasks, rank, outputs)))
        self.shared_a = DownProjection(jax.random.normal(rngs.params(), (*front, inputs, groups * rank)) / rank) if shared_set else None
        self.shared_b = UpProjection(jnp.zeros((*front, rank, outputs))) if shared_set else None

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        """x [B, N, in] shared by the tasks, or [T, B, N, in] -> [T, B, N, out]"""
        a, b = self.a[...].astype(x.dtype), self.b[...].astype(x.dtype)
        tasks, inputs, width = a.shape
        rank, outputs = b.shape[-2:]
        groups = width // rank
        y, dtype = checkpoint_name(unrounded_product(x, self.base), PRODUCT), x.dtype
        x = x if self.keys is None else drop(x, self.keys[...], self.dropout)
        if x.ndim == 3:  # one wide product with all tasks' A
            xa = (x @ jnp.moveaxis(a, 0, 1).reshape(inputs, tasks * width)).reshape(*x.shape[:-1], tasks, width)
            xa = jnp.moveaxis(xa, -2, 0)
        else:
            xa = jnp.einsum("tbni,tir->tbnr", x, a)
        xa = xa.reshape(*xa.shape[:-1], groups, rank)
        b = b.reshape(tasks, rank, groups, outputs // groups)
        updates = jnp.einsum("tbngr,trgo->tbngo", xa, b).reshape(*xa.shape[:-2], outputs)
        return (y + updates.astype(y.dtype)).astype(dtype)


class TaskPools(nnx.Module):
    """One attention pool per task, in the tasks' alphabetical order."""

    def __init__(self, pools: Sequence[nnx.Module]) -> None:
        self.pools = nnx.List(pools)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Tokens [B, N, D], shared by the tasks -> a feature of each, [T, B, D]"""
        return jnp.stack([pool(tokens) for pool in self.pools])
