"""Several adapters on one base: loaded together, picked by name for all images or for each (as S-LoRA serves them), or summed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxface.adapters.low_rank import Constant, Frozen, LowRank
from jaxface.adapters.places import as_base, is_adapted, linears
from jaxface.errors import UserError
from jaxface.kernels.matmul import unrounded_product
from jaxface.models.encoder import Encoder, cut_stages
from jaxface.models.tree import arrays_of, shallow_copy


class Update(NamedTuple):
    """What an adapter makes of a linear, `x (W + A B) gain`; further axes in front are of stacked blocks.

    Attributes:
      a: [..., in, R]
      b: [..., R, out]
      gain: [..., out], 1 for LoRA and where nothing is adapted.
    """

    a: Any
    b: Any
    gain: Any


def update_of(kernel: Any) -> Update:
    """A kernel's update; of one that is not adapted, of rank 0."""
    *front, inputs, outputs = kernel.base.shape if isinstance(kernel, LowRank) else kernel.shape
    ones = jnp.ones((*front, outputs))
    if not isinstance(kernel, LowRank):
        return Update(jnp.zeros((*front, inputs, 0)), jnp.zeros((*front, 0, outputs)), ones)
    a, b, _ = kernel.plain_update()
    gain = kernel.gain()
    return Update(a, b, ones if gain is None else gain)


def padded(update: Update, rank: int) -> Update:
    """The same update with zeros up to a rank, of NumPy's or JAX's arrays as it is."""
    a, b, gain = update
    xp, none, missing = a.__array_namespace__(), [(0, 0)] * (a.ndim - 2), rank - a.shape[-1]
    if not missing:
        return update
    return Update(xp.pad(a, [*none, (0, 0), (0, missing)]), xp.pad(b, [*none, (0, missing), (0, 0)]), gain)


class PerSample(nnx.Module):
    """A frozen kernel W with K low-rank updates, of which each sample of a batch takes its own: for inference.

    Attributes:
      base: [in, out], a parameter or a kernel in fewer bits.
      a: [K, in, r], ranks below r filled with zeros.
      b: [K, r, out]
      gain: [K, out], DoRA's magnitude over the length of each column, computed once; 1 for LoRA. None if all are LoRA.
      index: [B] int32, the update of each sample; None where K is B and each has the one of its own number.
      pooled: whether an x of two axes is [B, in]; else it is [N, in], the same for every sample.
    """

    def __init__(self, base: Any, a: jax.Array, b: jax.Array, gain: jax.Array | None, index: jax.Array | None, pooled: bool) -> None:
        self.base = base if isinstance(base, Frozen) else nnx.Param(base)
        self.a, self.b = Constant(a), Constant(b)
        self.gain = None if gain is None else Constant(gain)
        self.index, self.pooled = None if index is None else Constant(index), pooled

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        """x [B, N, in] -> [B, N, out]; [B, in] -> [B, out] where it is pooled, else [N, in] -> [B, N, out]."""
        if x.ndim == 2 and self.pooled:
            return (x[:, None] @ self)[:, 0]
        if x.ndim == 2:
            x = jnp.broadcast_to(x, ((self.a if self.index is None else self.index).shape[0], *x.shape))
        count = None if self.index is None else self.index.shape[0]
        if count not in (None, x.shape[0]):
            raise UserError(f"{count} adapters picked for a batch of {x.shape[0]} images: name one for each")
        a, b = (self._own(array).astype(x.dtype) for array in (self.a, self.b))
        y = unrounded_product(x, self.base) + ((x @ a) @ b).astype(jnp.float32)
        return (y if self.gain is None else y * jnp.expand_dims(self._own(self.gain), -2)).astype(x.dtype)

    def _own(self, of_each: nnx.Variable) -> jax.Array:
        """Of K arrays each sample's own, [B, ...]; where K is 1 that one, which all share."""
        arrays = of_each[...]
        if arrays.shape[0] == 1:
            return arrays[0]
        return arrays if self.index is None else arrays[self.index[...]]


@dataclass(frozen=True)
class AdapterSet:
    """Adapters by name on one base; `stack_adapters` makes it.

    Attributes:
      names: of the adapters, in the order of their numbers.
      adapters: the encoder with each adapter, all around the same frozen arrays.
      encoder: the encoder whose kernels hold every adapter.
    """

    names: tuple[str, ...]
    adapters: dict[str, Encoder]
    encoder: Encoder

    def only(self, name: str) -> Encoder:
        """The encoder with one adapter, for all images."""
        self._number(name)
        return self.adapters[name]

    def pick(self, names: Sequence[str]) -> Encoder:
        """The encoder for a batch whose samples use these adapters, one name a sample."""
        return self.pick_numbers(jnp.asarray([self._number(name) for name in names], jnp.int32))

    def pick_numbers(self, index: jax.Array) -> Encoder:
        """As `pick`, with the adapters' numbers [B]: may be traced, so that one compiled program serves every choice."""
        encoder = shallow_copy(self.encoder)
        for _, linear in linears(encoder):
            kernel = linear.kernel
            if isinstance(kernel, PerSample):
                front = kernel.base.shape[:-2]
                kernel.index = Constant(jnp.broadcast_to(index, (*front, *index.shape)))
        return encoder

    def blend(self, weights: Mapping[str, float]) -> Encoder:
        """A plain encoder whose kernels are W + sum of weight * (what that adapter makes of W - W)."""
        for name in weights:
            self._number(name)
        alike = _cut_alike(self.adapters)
        parts = [_kernels(alike[name]) for name in weights]
        encoder = shallow_copy(self.encoder)
        for path, linear in linears(encoder):
            kernel = linear.kernel
            if isinstance(kernel, PerSample):
                linear.kernel = nnx.Param(_blended(kernel.base, [part[path] for part in parts], list(weights.values())))
        return encoder

    def _number(self, name: str) -> int:
        if name not in self.names:
            raise UserError(f"no adapter {name!r}; loaded: {', '.join(self.names)}")
        return self.names.index(name)


def stack_adapters(adapters: Mapping[str, Encoder]) -> AdapterSet:
    """Several adapted copies of one encoder as one that holds them all: `stack_adapters({"raf": load_peft(encoder, "raf"), ...})`.

    Any mixture of LoRA and DoRA, ranks, blocks and adapted kernels; a kernel that only some adapt stays as it was for the others.

    An encoder without an adapter beside them is one more choice: the base alone.

    Raises UserError if there is none, if no encoder is adapted, if one has an update per task, or if they differ in anything but LoRA
    and DoRA adapters.
    """
    if not adapters:
        raise UserError("no adapter to stack: expected at least one")
    alike = _cut_alike(adapters)
    kernels = {name: _kernels(encoder) for name, encoder in alike.items()}
    if not any(is_adapted(kernel) for found in kernels.values() for kernel in found.values()):
        raise UserError(f"{', '.join(adapters)}: no encoder of these has an adapter: adapt them or load their folders, and merge none")
    first = next(iter(alike))
    plain = {name: _plain_arrays(encoder) for name, encoder in alike.items()}
    for name, arrays in plain.items():
        for path, array in arrays.items():
            if path not in plain[first] or not _same(array, plain[first][path]) or len(arrays) != len(plain[first]):
                raise UserError(f"adapter {name!r} stands on another {path} than {first!r}: expected one frozen base, and LoRA or DoRA")
    stacked = shallow_copy(alike[first])
    for path, linear in linears(stacked):
        mine = [found[path] for found in kernels.values()]
        if any(isinstance(kernel, LowRank) for kernel in mine):
            base = next(kernel.base if isinstance(kernel, LowRank) else kernel for kernel in mine)
            linear.kernel = _stack(as_base(base), mine, pooled=path == "projection")
    return AdapterSet(tuple(adapters), dict(adapters), stacked)


def _cut_alike(adapters: Mapping[str, Encoder]) -> dict[str, Encoder]:
    """The encoders with their stages cut at the same blocks. Raises UserError for an update per task, which needs a stage of its own."""
    starts: set[int] = set()
    for name, encoder in adapters.items():
        kind = next((type(k).__name__ for k in _kernels(encoder).values() if is_adapted(k) and not isinstance(k, LowRank)), None)
        if kind is not None:
            raise UserError(f"adapter {name!r} has a kernel of kind {kind}: only LoRA and DoRA adapters can share an encoder")
        starts |= set(itertools.accumulate(stage.norm1.scale.shape[0] for stage in encoder.stages))
    copies = {name: shallow_copy(encoder) for name, encoder in adapters.items()}
    for encoder in copies.values():
        cut_stages(encoder, starts)
    return copies


OWN = re.compile(r"\.kernel\.(a|b|magnitude|base_norms|start_a|start_b)$")


def _plain_arrays(encoder: Encoder) -> dict[str, jax.Array]:
    """All arrays but the adapters' own, a frozen kernel under the same name whether it is adapted or not."""
    return {re.sub(r"\.kernel\.base", ".kernel", name): array for name, array in arrays_of(encoder).items() if not OWN.search(name)}


def _same(a: jax.Array, b: jax.Array) -> bool:
    return a is b or (a.dtype == b.dtype and a.shape == b.shape and bool(_equal(a, b)))


@jax.jit
def _equal(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.all(a == b)


def _kernels(encoder: Encoder) -> dict[str, Any]:
    return {path: linear.kernel for path, linear in linears(encoder)}


def _stack(base: Any, kernels: Sequence[Any], pooled: bool) -> PerSample:
    """One kernel with K updates, on the axis after those of stacked blocks."""
    axis = len(base.shape) - 2
    a, b, gain = _stacked(kernels, axis)
    lengthened = any(isinstance(kernel, LowRank) and kernel.magnitude is not None for kernel in kernels)
    return PerSample(base, a, b, gain if lengthened else None, jnp.zeros((*base.shape[:axis], 1), jnp.int32), pooled)


@partial(jax.jit, static_argnums=1)
def _stacked(kernels: Sequence[Any], axis: int) -> tuple[jax.Array, ...]:
    """The updates of kernels as `PerSample` has them: ranks filled up, one behind the other on an axis."""
    updates = [update_of(kernel) for kernel in kernels]
    rank = max(update.a.shape[-1] for update in updates)
    return tuple(jnp.stack(arrays, axis) for arrays in zip(*(padded(update, rank) for update in updates), strict=True))


@jax.jit
def _blended(base: Any, kernels: Sequence[Any], weights: Sequence[float]) -> jax.Array:
    """W + sum of weight * (what that kernel makes of W - W), float32."""
    w = base[...].astype(jnp.float32)
    changes = (weight * (kernel.merge() - w) for weight, kernel in zip(weights, kernels, strict=True) if isinstance(kernel, LowRank))
    return sum(changes, start=w)
