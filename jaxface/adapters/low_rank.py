"""LoRA and DoRA as kernels: objects that stand where a kernel stood and know how to be multiplied by x."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from jaxface.kernels.dropout import drop
from jaxface.kernels.matmul import NORM_FLOOR, low_rank_product, product, up


class Adapter(nnx.Param):
    """A parameter that an adapter adds."""


class DownProjection(Adapter):
    """A of `x W + x A B`."""


class UpProjection(Adapter):
    """B of `x W + x A B`: the one that LoRA+ gives the larger learning rate."""


class Magnitude(Adapter):
    """DoRA's length of each output feature's column."""


class Constant(nnx.Variable):
    """A value computed once from frozen parameters: neither trained nor counted."""


def column_norms_squared(w: jax.Array) -> jax.Array:
    """||w||^2 of each output feature: [..., in, out] -> [..., out] float32."""
    return jnp.sum(jnp.square(w.astype(jnp.float32)), -2)


class LowRank(nnx.Module):
    """A frozen kernel W [in, out] with a low-rank update: W + A B (LoRA, Hu et al. 2021, eq. 3), or with `dora`
    magnitude * (W + A B) / ||W + A B|| per output feature (DoRA, Liu et al. 2024, eq. 5).

    All arrays may have further axes in front (blocks stacked along depth). There is no scaling factor unless `scaling` is given.

    Attributes:
      base: [in, out], frozen: no gradient of it is ever formed. A parameter, or one of `jaxface.adapters.quantized` in its place.
      a: [in, groups * rank], drawn from N(0, std 1 / rank).
      b: [rank, out], zero at first; with several groups each equal slice of the outputs has an adapter of its own.
      magnitude: [out], ||W|| at first, or None for LoRA.
      base_norms: [out] ||W||^2, computed once.
      keys: [B] random keys of a training step with dropout, else None: see `jaxface.adapters.dropout_keys`.
    """

    def __init__(
        self,
        base: jax.Array,
        rank: int,
        *,
        dora: bool = False,
        groups: int = 1,
        scaling: float = 1.0,
        detach_norm: bool = True,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        *front, inputs, outputs = base.shape
        self.scaling = scaling
        self.detach_norm = detach_norm
        self.dropout, self.keys = dropout, nnx.data(None)
        self.base = nnx.Param(base)
        self.a = DownProjection(jax.random.normal(rngs.params(), (*front, inputs, groups * rank)) / rank)
        self.b = UpProjection(jnp.zeros((*front, rank, outputs)))
        norms = column_norms_squared(base) if dora else None
        self.base_norms = None if norms is None else Constant(norms)
        self.magnitude = None if norms is None else Magnitude(jnp.sqrt(norms))

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        """x [..., in] @ self -> [..., out]"""
        if self.keys is None:
            return self._product(x)
        kept = drop(x, self.keys[...], self.dropout)
        return product(x - kept, jax.lax.stop_gradient(self.base)) + self._product(kept)

    def _product(self, x: jax.Array) -> jax.Array:
        a, b = self.a[...], self._b()
        w = self.base[...].astype(x.dtype) if isinstance(self.base, nnx.Variable) else self.base
        if self.magnitude is None:
            return low_rank_product(x, w, a, b)
        if self.detach_norm:
            return low_rank_product(x, w, a, b, self.magnitude[...], lengths=self._lengths)
        return low_rank_product(x, w, a, b, self.gain())

    def _b(self) -> jax.Array:
        return self.b[...] if self.scaling == 1 else self.b[...] * self.scaling

    def gain(self) -> jax.Array | None:
        """DoRA's factor per output feature, magnitude / ||W + A B||: [..., out] float32, or None for LoRA."""
        if self.magnitude is None:
            return None
        return self.magnitude[...] / self._lengths()

    def _lengths(self) -> jax.Array:
        """||W + A B|| of each output feature: [..., out] float32."""
        norms = jnp.sqrt(jnp.maximum(self._norms_squared(), NORM_FLOOR))
        # DoRA, section 4.3: the norm is a constant in the backward pass
        return jax.lax.stop_gradient(norms) if self.detach_norm else norms

    def _norms_squared(self) -> jax.Array:
        """||W + A B||^2 = ||W||^2 + 2 <W, A B> + ||A B||^2 per output feature, through products of width r only."""
        w, a, b = (jnp.asarray(v).astype(jnp.float32) for v in (self.base[...], self.a[...], self._b()))
        if self.detach_norm:
            a, b = jax.lax.stop_gradient(a), jax.lax.stop_gradient(b)
        rank, outputs = b.shape[-2:]
        groups = a.shape[-1] // rank
        front = a.shape[:-2]
        a = jnp.moveaxis(a.reshape(*a.shape[:-1], groups, rank), -2, -3)  # [..., g, in, r]
        w = jnp.moveaxis(w.reshape(*w.shape[:-1], groups, outputs // groups), -2, -3)  # [..., g, in, out / g]
        b = jnp.moveaxis(b.reshape(*front, rank, groups, outputs // groups), -2, -3)
        cross = 2 * jnp.einsum("...ir,...io->...ro", a, w) + jnp.einsum("...ir,...is,...so->...ro", a, a, b)
        return self.base_norms[...] + jnp.sum(cross * b, -2).reshape(*front, outputs)

    def update(self) -> jax.Array:
        """A B as a dense array [..., in, out]."""
        b = self._b()
        groups = self.a.shape[-1] // b.shape[-2]
        if b.ndim == 2:
            return up(self.a[...], b, groups)
        return jax.vmap(lambda a, b: up(a, b, groups))(self.a[...], b)

    def plain_update(self) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """A [..., in, R], B [..., R, out] and the magnitude [..., out] of the same adapter without groups or scaling, R = groups * rank."""
        a, b = self.a[...], self._b()
        groups = a.shape[-1] // b.shape[-2]
        blocks = jnp.split(b, groups, -1)
        zero = jnp.zeros_like(blocks[0])
        rows = [jnp.concatenate([block if i == j else zero for j in range(groups)], -1) for i, block in enumerate(blocks)]
        return a, jnp.concatenate(rows, -2), None if self.magnitude is None else self.magnitude[...]

    def merge(self) -> jax.Array:
        """The plain kernel [..., in, out] that does the same, in float32: a base in bfloat16 has no room for a small update."""
        w = self.base[...].astype(jnp.float32) + self.update()
        gain = self.gain()
        return w if gain is None else w * gain[..., None, :]
