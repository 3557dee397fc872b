"""A vision tower with all its parts, small, every parameter random."""

from __future__ import annotations

from functools import cache

import jax
import numpy as np
from flax import nnx

from jaxface.models.clip import Clip
from jaxface.models.encoder import random_encoder
from jaxface.models.tree import flatten
from jaxface.models.variants import EncoderConfig

TINY = EncoderConfig(width=32, depth=3, heads=4, mlp_width=64, patch=4, image_size=16, output=24, pool_heads=4)


def randomized(module, seed=0, scale=0.1):
    """The module with noise added to every array that training could change, so that no zero or one hides a mistake."""
    arrays, structure = flatten(module)
    rng = np.random.default_rng(seed)
    changed = {
        name: jax.device_put(np.asarray(leaf) + scale * rng.normal(size=leaf.shape).astype(leaf.dtype))  # compiles nothing
        if issubclass(structure.kinds[name], nnx.Param)
        else leaf
        for name, leaf in arrays.items()
    }
    return structure.build(changed)


@cache
def _tiny_arrays():
    return flatten(randomized(random_encoder(TINY, 0)))


def tiny_encoder():
    """The encoder of `TINY`."""
    arrays, structure = _tiny_arrays()
    return structure.build(arrays)


def tiny_clip(text):
    """Both towers, new: that encoder's shape and a text tower's. One program draws all."""
    return nnx.jit(lambda: Clip(TINY, text, rngs=nnx.Rngs(0)))()


def random_images(count=4):
    """[count, 16, 16, 3] in -1..1."""
    return jax.random.uniform(jax.random.key(5), (count, 16, 16, 3), minval=-1, maxval=1)
