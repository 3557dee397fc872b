"""Low-rank updates apart from the encoder that they were made on, and one encoder that gives every sample of a batch its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.adapters.low_rank import LowRank
from jaxface.adapters.mixed_batch import PerSample, Update, padded, update_of
from jaxface.adapters.places import as_base, is_adapted, linears
from jaxface.errors import UserError
from jaxface.models.encoder import Encoder
from jaxface.models.tree import shallow_copy

Updates = dict[str, Update]
"""By the linear's name in a block (`attn.qkv`)."""


def updates_of(encoder: Encoder, name: str = "adapter") -> Updates:
    """The updates of every linear in an encoder's blocks, as NumPy arrays whose R is the largest rank found, 0 where nothing is adapted.

    Raises UserError for a kernel that is adapted in another way than by LoRA or DoRA.
    """
    found: dict[str, list[Update]] = {}
    for stage in encoder.stages:
        for path, linear in linears(stage):
            kernel = linear.kernel
            if is_adapted(kernel) and not isinstance(kernel, LowRank):
                raise UserError(f"{name}: {path} has a kernel of kind {type(kernel).__name__}: only LoRA and DoRA can share an encoder")
            found.setdefault(path, []).append(Update(*(np.asarray(array, np.float32) for array in update_of(kernel))))
    rank = max(update.a.shape[-1] for parts in found.values() for update in parts)
    return {
        path: Update(*(np.concatenate(arrays) for arrays in zip(*(padded(update, rank) for update in parts), strict=True)))
        for path, parts in found.items()
    }


def with_updates(encoder: Encoder, updates: Sequence[Mapping[str, Update]], index: jax.Array | None) -> Encoder:
    """The encoder for a batch whose sample i takes `updates[index[i]]` in its blocks: for inference, within a program or without.

    Args:
      encoder: without adapters, its blocks in one stage.
      updates: of one rank.
      index: [B] int32, may be traced; None if there is an update for each sample, in their order.
    """
    encoder = shallow_copy(encoder)
    (stage,) = encoder.stages
    depth = stage.norm1.scale.shape[0]
    for path, linear in linears(stage):
        a, b, gain = (jnp.stack(arrays, 1) for arrays in zip(*(update[path] for update in updates), strict=True))
        numbers = None if index is None else jnp.broadcast_to(index, (depth, *index.shape))
        linear.kernel = PerSample(as_base(linear.kernel), a, b, gain, numbers, pooled=False)
    return encoder
