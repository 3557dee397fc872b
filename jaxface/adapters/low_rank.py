"""LoRA and DoRA as kernels: objects that stand where a kernel stood and know how to be multiplied by x."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxface.errors import UserError
from jaxface.kernels.dropout import drop
from jaxface.kernels.matmul import NORM_FLOOR, dense, finished, low_rank_product, product, sums_kernel, up
from jaxface.kernels.normalize import at_least_float32
from jaxface.kernels.operations import ADAPTED_PRODUCT, OWN, run_kernel
from jaxface.registry import Registry


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


class Frozen(nnx.Module):
    """A kernel that stands for a frozen array: what may be the base of an adapter. Indexed with `...` it is that array."""


class Start(nnx.BatchStat):
    """Where an update started that is not zero at first: it never changes, and a run keeps it beside what trains."""


class Init(Protocol):
    """(kernel [..., in, out], rank, scaling) -> A [..., in, rank] and B [..., rank, out], of numpy or JAX as the kernel is."""

    def __call__(self, kernel: Any, rank: int, scaling: float) -> tuple[Any, Any]: ...


INITS: Registry[Init] = Registry("init", others="or gaussian or kaiming")
"""Ways to start an update from its kernel. The sum starts as the kernel all the same: see `LowRank`."""

GAUSSIAN = "gaussian"
RANDOM: dict[str, Callable[[jax.Array, tuple[int, ...], int], jax.Array]] = {
    GAUSSIAN: lambda key, shape, rank: jax.random.normal(key, shape) / rank,
    "kaiming": lambda key, shape, rank: jax.random.uniform(key, shape, minval=-(shape[-2] ** -0.5), maxval=shape[-2] ** -0.5),
}
"""Ways to draw A [..., in, groups * rank] where B is zero at first: N(0, std 1 / rank) as the thesis has it, or uniform within
1 / sqrt(in), PEFT's default. The second is larger where the kernel's input is narrower than a third of the rank's square."""


@INITS.register("pissa")
def pissa(kernel: Any, rank: int, scaling: float) -> tuple[Any, Any]:
    """The kernel's largest singular values and their vectors, over the scaling (PiSSA, Meng et al. 2024, eq. 2 and 3)."""
    xp = kernel.__array_namespace__()
    if scaling <= 0:
        raise UserError(f"adapter scaling {scaling:g}: an update that starts as pissa needs one above 0")
    u, s, vh = xp.linalg.svd(kernel, full_matrices=False)
    root = xp.sqrt(s[..., :rank] / scaling)
    return u[..., :rank] * root[..., None, :], root[..., None] * vh[..., :rank, :]


@INITS.register("olora")
def olora(kernel: Any, rank: int, scaling: float) -> tuple[Any, Any]:
    """The first columns and rows of the QR decomposition of the kernel [out, in] (OLoRA, Büyükakyüz 2024, section 3)."""
    xp = kernel.__array_namespace__()
    q, r = xp.linalg.qr(xp.swapaxes(kernel, -1, -2))
    return xp.swapaxes(r[..., :rank, :], -1, -2), xp.swapaxes(q[..., :rank], -1, -2)


def start_from(kernel: Any, init: Init, rank: int, groups: int, scaling: float) -> tuple[Any, Any]:
    """A [..., in, groups * rank] and B [..., rank, out]: as a way of `INITS` has them for each of `groups` equal slices of the outputs.

    Raises UserError for a rank that the kernel does not have.
    """
    xp = kernel.__array_namespace__()
    most = min(kernel.shape[-2], kernel.shape[-1] // groups)
    if rank > most:
        raise UserError(f"adapter rank {rank}: a kernel of {kernel.shape[-2]} x {kernel.shape[-1] // groups} has at most {most}")
    parts = [init(part, rank, scaling) for part in xp.split(kernel, groups, -1)]
    return xp.concatenate([a for a, _ in parts], -1), xp.concatenate([b for _, b in parts], -1)


_compiled_start = jax.jit(start_from, static_argnums=(1, 2, 3, 4))


@jax.jit
def column_norms_squared(w: jax.Array) -> jax.Array:
    """||w||^2 of each output feature: [..., in, out] -> [..., out] in at least float32."""
    return jnp.sum(jnp.square(w.astype(at_least_float32(w.dtype))), -2)


@partial(jax.jit, static_argnums=(1, 2, 3, 4), inline=True)
def random_start(key: jax.Array, shape: tuple[int, ...], groups: int, rank: int, init: str = GAUSSIAN) -> tuple[jax.Array, jax.Array]:
    """A [..., in, groups * rank] as a way of `RANDOM` draws it and B [..., rank, out] of zeros, for a kernel of that shape."""
    *front, inputs, outputs = shape
    return RANDOM[init](key, (*front, inputs, groups * rank), rank), jnp.zeros((*front, rank, outputs))


@partial(jax.jit, static_argnums=4, inline=True)
def updated_lengths(w: jax.Array, norms: jax.Array, a: jax.Array, b: jax.Array, detach: bool) -> jax.Array:
    """||W + A B|| of each output feature, through products of width r only: ||W||^2 + 2 <W, A B> + ||A B||^2 is its square.

    Args:
      w: [..., in, out]
      norms: ||W||^2 [..., out]
      a: [..., in, groups * rank]
      b: [..., rank, out]
      detach: whether it is a constant in the backward pass (DoRA, section 4.3).

    Returns:
      [..., out] in at least float32
    """
    w, a, b = (v.astype(at_least_float32(v.dtype)) for v in map(jnp.asarray, (w, a, b)))
    if detach:
        a, b = jax.lax.stop_gradient(a), jax.lax.stop_gradient(b)
    rank, outputs = b.shape[-2:]
    groups = a.shape[-1] // rank
    front = a.shape[:-2]
    a = jnp.moveaxis(a.reshape(*a.shape[:-1], groups, rank), -2, -3)  # [..., g, in, r]
    w = jnp.moveaxis(w.reshape(*w.shape[:-1], groups, outputs // groups), -2, -3)  # [..., g, in, out / g]
    b = jnp.moveaxis(b.reshape(*front, rank, groups, outputs // groups), -2, -3)
    cross = 2 * jnp.einsum("...ir,...io->...ro", a, w) + jnp.einsum("...ir,...is,...so->...ro", a, a, b)
    lengths = jnp.sqrt(jnp.maximum(norms + jnp.sum(cross * b, -2).reshape(*front, outputs), NORM_FLOOR))
    return jax.lax.stop_gradient(lengths) if detach else lengths


class LowRank(nnx.Module):
    """A frozen kernel W [in, out] with a low-rank update: W + A B (LoRA, Hu et al. 2021, eq. 3), or with `dora`
    magnitude * (W + A B) / ||W + A B|| per output feature (DoRA, Liu et al. 2024, eq. 5).

    All arrays may have further axes in front (blocks stacked along depth). There is no scaling factor unless `scaling` is given.
    An update whose A B is not zero at first (PiSSA, OLoRA) is A B - A0 B0 with what it started from: those methods take A0 B0 out of
    the frozen kernel instead, which is the same sum and costs a second copy of it.

    Attributes:
      base: [in, out], frozen: no gradient of it is ever formed. A parameter, or one of `jaxface.adapters.quantized` in its place.
      a: [in, groups * rank], as a way of `RANDOM` or `INITS` starts it.
      b: [rank, out]; with several groups each equal slice of the outputs has an adapter of its own.
      start_a, start_b: A0 and B0, or None where B starts from zero.
      magnitude: [out], ||W|| at first, or None for LoRA.
      base_norms: [out] ||W||^2, computed once.
      gains: magnitude / ||W + A B||, computed for all blocks at once before they run (`prepare`), else None.
      keys: [B] random keys of a training step with dropout, else None: see `jaxface.adapters.dropout_keys`.
    """

    operation, implementation = ADAPTED_PRODUCT, OWN

    def __init__(
        self,
        base: Any,
        rank: int,
        *,
        dora: bool = False,
        groups: int = 1,
        scaling: float = 1.0,
        detach_norm: bool = True,
        dropout: float = 0.0,
        init: str = GAUSSIAN,
        rngs: nnx.Rngs,
    ) -> None:
        kernel = base[...] if isinstance(base, Frozen) else base
        self.scaling = scaling
        self.detach_norm = detach_norm
        self.dropout, self.keys, self.gains = dropout, nnx.data(None), nnx.data(None)
        self.base = base if isinstance(base, Frozen) else nnx.Param(base)
        if init in RANDOM:
            a, b = random_start(rngs.params(), kernel.shape, groups, rank, init)
        else:
            a, b = _compiled_start(kernel.astype(jnp.float32), INITS[init], rank, groups, scaling)
        self.a, self.b = DownProjection(a), UpProjection(b)
        self.start_a, self.start_b = (nnx.data(None), nnx.data(None)) if init in RANDOM else (Start(a), Start(b))
        norms = column_norms_squared(kernel) if dora else None
        self.base_norms = None if norms is None else Constant(norms)
        self.magnitude = None if norms is None else Magnitude(jnp.sqrt(norms))

    @property
    def keeps_result(self) -> bool:
        """Whether the backward pass asks for the product itself: the magnitude's gradient is a sum over it."""
        return self.magnitude is not None

    def prepare(self, tokens: int, dtype: DTypeLike) -> None:
        """Computes what no block's input has a part in, for that many rows of x in a dtype: in one product for all blocks."""
        if self.magnitude is not None and self.detach_norm and not sums_kernel(tokens, *self.base.shape[-2:], dtype):
            self.gains = Constant(self.gain())

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        """x [..., in] @ self -> [..., out]"""
        return self.affine(x, None)

    def affine(self, x: jax.Array, bias: jax.Array | None) -> jax.Array:
        """x [..., in] @ self + bias [out] -> [..., out], rounded once."""
        if self.keys is None:
            return self._product(x, bias)
        kept = drop(x, self.keys[...], self.dropout)
        y = product(x - kept, jax.lax.stop_gradient(self.base)) + self._product(kept, bias)
        if self.start_a is None:
            return y
        a, b = (start[...].astype(x.dtype) for start in (self.start_a, self.start_b))
        return y - self.scaling * up((x - kept) @ a, b, a.shape[-1] // b.shape[-2])

    def _product(self, x: jax.Array, bias: jax.Array | None) -> jax.Array:
        a, b = self.factors()
        w = self.base[...].astype(x.dtype) if isinstance(self.base, nnx.Variable) else self.base
        if self.implementation != OWN:
            a, b, _ = self.plain_update()
            gain = self.gain() if self.gains is None else self.gains[...]
            y = run_kernel(ADAPTED_PRODUCT, self.implementation, x, jax.lax.stop_gradient(dense(w, x.dtype)), a, b, gain)
            return finished(y, None, bias)
        if self.magnitude is None:
            return low_rank_product(x, w, a, b, None, bias)
        if self.gains is not None:
            return low_rank_product(x, w, a, b, self.gains[...], bias)
        if self.detach_norm:
            return low_rank_product(x, w, a, b, self.magnitude[...], bias, lengths=self._lengths)
        return low_rank_product(x, w, a, b, self.gain(), bias)

    def factors(self) -> tuple[jax.Array, jax.Array]:
        """A [..., in, groups * R] and B [..., R, out] of the whole update: scaled, and less what it started from."""
        a, b = self.a[...], self.b[...]
        if self.start_a is not None:
            groups = a.shape[-1] // b.shape[-2]
            a, start = (x.reshape(*x.shape[:-1], groups, -1) for x in (a, self.start_a[...]))
            a = jnp.concatenate([a, start], -1).reshape(*a.shape[:-2], -1)
            b = jnp.concatenate([b, -self.start_b[...]], -2)
        return a, b if self.scaling == 1 else b * self.scaling

    def gain(self) -> jax.Array | None:
        """DoRA's factor per output feature, magnitude / ||W + A B||: [..., out] float32, or None for LoRA."""
        if self.magnitude is None:
            return None
        return self.magnitude[...] / self._lengths()

    def _lengths(self) -> jax.Array:
        """||W + A B|| of each output feature: [..., out] float32."""
        return updated_lengths(self.base[...], self.base_norms[...], *self.factors(), self.detach_norm)

    def update(self) -> jax.Array:
        """A B as a dense array [..., in, out]."""
        a, b = self.factors()
        groups = a.shape[-1] // b.shape[-2]
        if b.ndim == 2:
            return up(a, b, groups)
        return jax.vmap(lambda a, b: up(a, b, groups))(a, b)

    def plain_update(self) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """A [..., in, R], B [..., R, out] and the magnitude [..., out] of the same adapter without groups or scaling, R = groups * rank."""
        a, b = self.factors()
        groups = a.shape[-1] // b.shape[-2]
        if groups == 1:
            return a, b, None if self.magnitude is None else self.magnitude[...]
        blocks = jnp.split(b, groups, -1)
        zero = jnp.zeros_like(blocks[0])
        rows = [jnp.concatenate([block if i == j else zero for j in range(groups)], -1) for i, block in enumerate(blocks)]
        return a, jnp.concatenate(rows, -2), None if self.magnitude is None else self.magnitude[...]

    def merge(self) -> jax.Array:
        """The plain kernel [..., in, out] that does the same, in float32: a base in bfloat16 has no room for a small update."""
        w = self.base[...].astype(at_least_float32(self.base[...].dtype)) + self.update()
        gain = self.gain()
        return w if gain is None else w * gain[..., None, :]
