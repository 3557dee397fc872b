"""Both towers together: images and texts as features in one space."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from jaxface.models.encoder import Encoder
from jaxface.models.text import Text
from jaxface.models.variants import EncoderConfig, TextConfig


class Clip(nnx.Module):
    """A vision tower, a text tower, the logarithm of the scale of their cosine similarities, and their offset or None."""

    def __init__(self, vision: EncoderConfig, text: TextConfig, *, rngs: nnx.Rngs) -> None:
        self.visual = Encoder(vision, rngs=rngs)
        self.text = Text(text, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.log(jnp.float32(1 / 0.07)))
        self.logit_bias = nnx.Param(jnp.float32(-10)) if text.logit_bias else None

    def encode_image(self, images: jax.Array, normalize: bool = False) -> jax.Array:
        """[B, H, W, 3] in -1..1 -> features [B, D], of unit length with `normalize`."""
        features = self.visual(images)
        return unit(features) if normalize else features

    def encode_text(self, ids: jax.Array, normalize: bool = False) -> jax.Array:
        """Token ids [B, L] -> features [B, D], of unit length with `normalize`."""
        features = self.text(ids)
        return unit(features) if normalize else features

    def __call__(self, images: jax.Array, ids: jax.Array) -> jax.Array:
        """Images [B, H, W, 3] and token ids [T, L] -> logits [B, T]: cosine similarities times the scale, and the offset, in float32."""
        return self.logits(self.encode_image(images), self.encode_text(ids))

    def logits(self, images: jax.Array, texts: jax.Array) -> jax.Array:
        """Features [B, D] and [T, D] of any length -> logits [B, T] as `__call__` gives them."""
        similarity = unit(images).astype(jnp.float32) @ unit(texts).astype(jnp.float32).T
        logits = jnp.exp(self.logit_scale[...].astype(jnp.float32)) * similarity
        return logits if self.logit_bias is None else logits + self.logit_bias[...].astype(jnp.float32)


def unit(features: jax.Array) -> jax.Array:
    """[..., D] -> the same directions at length 1 (the length taken in float32)."""
    length = jnp.linalg.norm(features.astype(jnp.float32), axis=-1, keepdims=True)
    return (features / jnp.maximum(length, 1e-12)).astype(features.dtype)
