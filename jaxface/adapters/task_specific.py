"""What each task has of its own: low-rank updates of kernels (MTLoRA, Agiza et al. 2024; thesis, section 3.6.1), what becomes of several
depths' features, or a whole pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxface.adapters.low_rank import Constant, DownProjection, Magnitude, UpProjection, column_norms_squared, random_start, updated_lengths
from jaxface.kernels.dropout import drop
from jaxface.kernels.gelu import gelu
from jaxface.kernels.matmul import PRODUCT, unrounded_product, up
from jaxface.models.tree import shallow_copy
from jaxface.registry import Registry


class TaskLowRank(nnx.Module):
    """A frozen kernel W with T updates: x becomes T results x W + x A_t B_t, one per task, along a new leading axis; with `dora` (TS-DoRA)
    each is magnitude_t * x (W + A_t B_t) / ||W + A_t B_t|| per output feature.

    An input that already has that axis keeps it: each task's x meets its own update. W is applied once to what the tasks share.

    Attributes:
      base: [in, out], frozen.
      a: [T, in, groups * rank]
      b: [T, rank, out], zero at first.
      magnitude: [T, out], ||W|| at first, or None; without `base_norms` it is what results are multiplied by.
      base_norms: [out] ||W||^2, computed once, or None.
      keys: [B] random keys of a training step with dropout, else None: see `jaxface.adapters.dropout_keys`.
      shared_a, shared_b: one more update, which MTLoRA's module also has: not used, since nothing task-agnostic follows; or None.
    """

    def __init__(
        self,
        base: Any,
        rank: int,
        tasks: int,
        *,
        groups: int = 1,
        shared_set: bool = False,
        dropout: float = 0.0,
        dora: bool = False,
        detach_norm: bool = True,
        rngs: nnx.Rngs,
    ) -> None:
        *front, inputs, outputs = base.shape
        self.base = base if isinstance(base, nnx.Module) else nnx.Param(base)
        self.dropout, self.keys, self.detach_norm = dropout, nnx.data(None), detach_norm
        a, b = random_start(rngs.params(), (*front, tasks, inputs, outputs), groups, rank)
        self.a, self.b = DownProjection(a), UpProjection(b)
        norms = column_norms_squared(base[...]) if dora else None
        self.base_norms = None if norms is None else Constant(norms)
        self.magnitude = None if norms is None else Magnitude(jnp.stack(tasks * [jnp.sqrt(norms)], -2))
        shared = random_start(rngs.params(), base.shape, groups, rank) if shared_set else None
        self.shared_a = None if shared is None else DownProjection(shared[0])
        self.shared_b = None if shared is None else UpProjection(shared[1])

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        """x [B, N, in] shared by the tasks, or [T, B, N, in] -> [T, B, N, out]"""
        kept, gain = x if self.keys is None else drop(x, self.keys[...], self.dropout), self.gain()
        # what dropout leaves out of an update, DoRA's gain passes by: that part meets the kernel as it is
        y = checkpoint_name(unrounded_product(x if gain is None else kept, self.base), PRODUCT)
        y = y + self._update(kept).astype(y.dtype)
        if gain is not None:
            y = y * gain[:, None, None]
            y = y if kept is x else y + unrounded_product(x - kept, self.base)
        return y.astype(x.dtype)

    def _update(self, x: jax.Array) -> jax.Array:
        """x A_t B_t of each task, [T, B, N, out]."""
        a, b = self.a[...].astype(x.dtype), self.b[...].astype(x.dtype)
        tasks, inputs, width = a.shape
        rank, outputs = b.shape[-2:]
        groups = width // rank
        if x.ndim == 3:  # one wide product with all tasks' A
            xa = (x @ jnp.moveaxis(a, 0, 1).reshape(inputs, tasks * width)).reshape(*x.shape[:-1], tasks, width)
            xa = jnp.moveaxis(xa, -2, 0)
        else:
            xa = jnp.einsum("tbni,tir->tbnr", x, a)
        xa = xa.reshape(*xa.shape[:-1], groups, rank)
        b = b.reshape(tasks, rank, groups, outputs // groups)
        return jnp.einsum("tbngr,trgo->tbngo", xa, b).reshape(*xa.shape[:-2], outputs)

    def gain(self) -> jax.Array | None:
        """DoRA's factor per task and output feature, magnitude / ||W + A_t B_t||: [T, out] float32, or None for LoRA."""
        if self.magnitude is None or self.base_norms is None:
            return None if self.magnitude is None else self.magnitude[...]
        base, norms = self.base[...][..., None, :, :], self.base_norms[...][..., None, :]
        return self.magnitude[...] / updated_lengths(base, norms, self.a[...], self.b[...], self.detach_norm)

    def settled(self) -> TaskLowRank:
        """The same for inference, where ||W + A_t B_t|| is divided by once."""
        if self.base_norms is None:
            return self
        kernel = shallow_copy(self)
        kernel.magnitude, kernel.base_norms = Magnitude(jax.jit(TaskLowRank.gain)(self)), None
        return kernel

    def kernels(self) -> jax.Array:
        """The plain kernel of each task, [T, in, out]."""
        groups = self.a.shape[-1] // self.b.shape[-2]
        dense = self.base[...] + jax.vmap(lambda a, b: up(a, b, groups))(self.a[...], self.b[...])
        gain = self.gain()
        return dense if gain is None else dense * gain[:, None, :]


class TaskPools(nnx.Module):
    """One attention pool per task, in the tasks' alphabetical order."""

    def __init__(self, pools: Sequence[nnx.Module]) -> None:
        self.pools = nnx.List(pools)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Tokens [B, N, D], shared by the tasks -> a feature of each, [T, B, D]"""
        return jnp.stack([pool(tokens) for pool in self.pools])


class Fusion(Protocol):
    """Tokens of S depths, the last block's behind the others, [S, T, B, N, D] -> what goes on for each task, [T, B, N, D].

    Made of (width, depths, tasks, rank, rngs). At first it gives what the last block gave.
    """

    def __call__(self, scales: jax.Array) -> jax.Array: ...


def normalized(x: jax.Array) -> jax.Array:
    """Each token with mean 0 and variance 1, float32: tokens grow with depth."""
    x = x.astype(jnp.float32)
    return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)


class AttentionFusion(nnx.Module):
    """Each token of each task attends to itself at all depths: x_S + gate_t * sum_s softmax_s(query_t . n(x_s) / sqrt(D) + bias_ts) n(x_s).

    Attributes:
      query, gate: [T, D], zero at first.
      bias: [T, S], zero at first.
    """

    def __init__(self, width: int, depths: int, tasks: int, rank: int, rngs: nnx.Rngs) -> None:
        self.query, self.gate = nnx.Param(jnp.zeros((tasks, width))), nnx.Param(jnp.zeros((tasks, width)))
        self.bias = nnx.Param(jnp.zeros((tasks, depths)))

    def __call__(self, scales: jax.Array) -> jax.Array:
        seen = normalized(scales)
        scores = jnp.einsum("stbnd,td->stbn", seen, self.query[...]) * scales.shape[-1] ** -0.5
        shares = jax.nn.softmax(scores + self.bias[...].T[:, :, None, None], axis=0)
        mixed = jnp.einsum("stbn,stbnd->tbnd", shares, seen) * self.gate[...][:, None, None]
        return (scales[-1] + mixed).astype(scales.dtype)


class MLPFusion(nnx.Module):
    """An MLP of each task, with as many hidden channels as the updates have ranks, over a token at all depths one behind the other:
    x_S + GELU([n(x_1) .. n(x_S)] W_t + c_t) V_t + e_t.

    Attributes:
      fc: W [T, S D, rank]; fc_bias: c [T, rank].
      proj: V [T, rank, D] and proj_bias: e [T, D], zero at first.
    """

    def __init__(self, width: int, depths: int, tasks: int, rank: int, rngs: nnx.Rngs) -> None:
        inputs = depths * width
        self.fc = nnx.Param(jax.random.normal(rngs.params(), (tasks, inputs, rank)) * inputs**-0.5)
        self.fc_bias = nnx.Param(jnp.zeros((tasks, rank)))
        self.proj = nnx.Param(jnp.zeros((tasks, rank, width)))
        self.proj_bias = nnx.Param(jnp.zeros((tasks, width)))

    def __call__(self, scales: jax.Array) -> jax.Array:
        depths, tasks, *_, width = scales.shape
        fc = self.fc[...].reshape(tasks, depths, width, -1)
        hidden = gelu(jnp.einsum("stbnd,tsdr->tbnr", normalized(scales), fc) + self.fc_bias[...][:, None, None])
        added = jnp.einsum("tbnr,trd->tbnd", hidden, self.proj[...]) + self.proj_bias[...][:, None, None]
        return (scales[-1] + added).astype(scales.dtype)


FUSIONS: Registry[Any] = Registry("fusion", {"attention": AttentionFusion, "mlp": MLPFusion}, others="or none")
"""What becomes of the features of several depths: makers of a `Fusion`."""
