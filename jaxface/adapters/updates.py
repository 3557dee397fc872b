"""Low-rank updates apart from the encoder that they were made on, and one encoder that gives every sample of a batch its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.adapters.low_rank import LowRank
from jaxface.adapters.methods import as_base, is_adapted, linears
from jaxface.adapters.mixed_batch import PerSample
from jaxface.errors import UserError
from jaxface.models.encoder import Encoder
from jaxface.models.tree import shallow_copy


class Update(NamedTuple):
    """What an adapter makes of one linear in all blocks, `x (W + A B) gain`.

    Attributes:
      a: [depth, in, R]
      b: [depth, R, out]
      gain: [depth, out], 1 for LoRA and where nothing is adapted.
    """

    a: Any
    b: Any
    gain: Any


Updates = dict[str, Update]
"""By the linear's name in a block (`attn.qkv`)."""


def updates_of(encoder: Encoder, name: str = "adapter") -> Updates:
    """The updates of every linear in an encoder's blocks, as NumPy arrays whose R is the largest rank found, 0 where nothing is adapted.

    Raises UserError for a kernel that is adapted in another way than by LoRA or DoRA.
    """
    found: dict[str, list[Update]] = {}
    for stage in encoder.stages:
        depth = stage.norm1.scale.shape[0]
        for path, linear in linears(stage):
            kernel = linear.kernel
            if is_adapted(kernel) and not isinstance(kernel, LowRank):
                raise UserError(f"{name}: {path} has a kernel of kind {type(kernel).__name__}: only LoRA and DoRA can share an encoder")
            found.setdefault(path, []).append(_update(kernel, depth))
    rank = max(update.a.shape[-1] for parts in found.values() for update in parts)
    return {
        path: Update(*(np.concatenate(arrays) for arrays in zip(*(padded(update, rank) for update in parts), strict=True)))
        for path, parts in found.items()
    }


def _update(kernel: Any, depth: int) -> Update:
    *_, inputs, outputs = kernel.base.shape if is_adapted(kernel) else kernel.shape
    ones = np.ones((depth, outputs), np.float32)
    if not is_adapted(kernel):
        return Update(np.zeros((depth, inputs, 0), np.float32), np.zeros((depth, 0, outputs), np.float32), ones)
    a, b, _ = kernel.plain_update()
    gain = kernel.gain()
    return Update(np.asarray(a, np.float32), np.asarray(b, np.float32), ones if gain is None else np.asarray(gain, np.float32))


def padded(update: Update, rank: int) -> Update:
    """The same update with zeros up to a rank."""
    missing = rank - update.a.shape[-1]
    if not missing:
        return update
    return Update(np.pad(update.a, ((0, 0), (0, 0), (0, missing))), np.pad(update.b, ((0, 0), (0, missing), (0, 0))), update.gain)


def with_updates(encoder: Encoder, updates: Sequence[Mapping[str, Update]], index: jax.Array) -> Encoder:
    """The encoder for a batch whose sample i takes `updates[index[i]]` in its blocks: for inference, within a program or without.

    Args:
      encoder: without adapters, its blocks in one stage.
      updates: of one rank.
      index: [B] int32, may be traced.
    """
    encoder = shallow_copy(encoder)
    (stage,) = encoder.stages
    depth = stage.norm1.scale.shape[0]
    for path, linear in linears(stage):
        a, b, gain = (jnp.stack(arrays, 1) for arrays in zip(*(update[path] for update in updates), strict=True))
        numbers = jnp.broadcast_to(index, (depth, *index.shape))
        linear.kernel = PerSample(as_base(linear.kernel), a, b, gain, numbers, pooled=False)
    return encoder


def own_bytes(arrays: Any) -> int:
    """Bytes of all arrays of a tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(arrays) if isinstance(leaf, np.ndarray | jax.Array))
