"""Dropout of what an adapter sees, as PEFT's `lora_dropout`: the frozen kernel always sees all of x."""

from __future__ import annotations

import jax
from flax import nnx

from jaxface.adapters.places import linears
from jaxface.models.encoder import Encoder


class Keys(nnx.Variable):
    """Random keys of one training step, one a sample: [..., B]. They are given to a model for a step and never stored."""


def set_keys(encoder: Encoder, key: jax.Array, samples: jax.Array) -> None:
    """Gives every adapted kernel that has a dropout its keys for a step, in place.

    Args:
      samples: [B] the numbers of this device's samples in the whole batch.
    """
    each = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    for index, (_, linear) in enumerate(linears(encoder)):
        kernel = linear.kernel
        if getattr(kernel, "dropout", 0):
            front = kernel.base.shape[:-2]
            own = jax.random.split(jax.random.fold_in(key, index), front)
            kernel.keys = Keys(each(own.reshape(-1), samples).reshape(*front, len(samples)))
