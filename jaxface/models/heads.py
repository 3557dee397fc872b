"""Heads: from an encoder's features to the logits of each task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxface.kernels.gelu import gelu
from jaxface.models.encoder import Encoder
from jaxface.models.layers import Linear


class Training(NamedTuple):
    """What a forward pass needs to know while training.

    Attributes:
      key: randomness of dropout on this device at this step.
      axis_name: the device axis that batch statistics are averaged over, or None on one device.
    """

    key: jax.Array
    axis_name: str | None = None


class BatchNorm(nnx.Module):
    """Batch normalisation of features [B, D], as torch's BatchNorm1d: epsilon 1e-5, momentum 0.1, unbiased running variance."""

    def __init__(self, width: int) -> None:
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.mean = nnx.BatchStat(jnp.zeros(width))
        self.variance = nnx.BatchStat(jnp.ones(width))

    def __call__(self, x: jax.Array, training: Training | None) -> jax.Array:
        """[B, D] -> [B, D]; while training over the batch of all devices, else with the running statistics."""
        x32 = x.astype(jnp.float32)
        if training is None:
            mean, variance = self.mean[...], self.variance[...]
        else:
            mean, variance = self._batch_statistics(x32, training.axis_name)
        y = (x32 - mean) * jax.lax.rsqrt(variance + 1e-5) * self.scale[...] + self.bias[...]
        return y.astype(x.dtype)

    def _batch_statistics(self, x: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
        average = (lambda v: v) if axis_name is None else lambda v: jax.lax.pmean(v, axis_name)
        count = x.shape[0] * (1 if axis_name is None else jax.lax.axis_size(axis_name))
        mean = average(x.mean(0))
        variance = average(jnp.square(x - mean).mean(0))
        self.mean[...] = 0.9 * self.mean[...] + 0.1 * jax.lax.stop_gradient(mean)
        self.variance[...] = 0.9 * self.variance[...] + 0.1 * jax.lax.stop_gradient(variance) * count / max(count - 1, 1)
        return mean, variance


class Head(nnx.Module):
    """One task's classifier: [batch norm,] dropout, [linear, GELU,] linear (thesis, section 3.4.1)."""

    def __init__(
        self, width: int, num_classes: int, *, deep: bool = True, batch_norm: bool = True, dropout: float = 0.1, rngs: nnx.Rngs
    ) -> None:
        self.dropout = dropout
        self.norm = BatchNorm(width) if batch_norm else None
        self.hidden = Linear(width, width, rngs=rngs) if deep else None
        self.out = Linear(width, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array, training: Training | None = None) -> jax.Array:
        """Features [B, D] -> logits [B, C] in float32."""
        if self.norm is not None:
            x = self.norm(x, training)
        if training is not None and self.dropout:
            keep = jax.random.bernoulli(training.key, 1 - self.dropout, x.shape)
            x = jnp.where(keep, x / (1 - self.dropout), 0).astype(x.dtype)
        if self.hidden is not None:
            x = gelu(self.hidden(x))
        return self.out(x).astype(jnp.float32)


class Classifier(nnx.Module):
    """An encoder with one head per task."""

    def __init__(
        self,
        encoder: Encoder,
        classes: Mapping[str, int],
        *,
        deep: bool = True,
        batch_norm: bool = True,
        dropout: float = 0.1,
        rngs: nnx.Rngs,
    ) -> None:
        self.encoder = encoder
        width = encoder.config.features
        self.heads = nnx.Dict(
            {task: Head(width, count, deep=deep, batch_norm=batch_norm, dropout=dropout, rngs=rngs) for task, count in classes.items()}
        )

    def features(self, images: jax.Array) -> jax.Array:
        """[B, H, W, 3] in -1..1 -> [B, D], or [T, B, D] where the encoder has a feature per task; without a pool the tokens' mean."""
        features = self.encoder(images)
        return features if self.encoder.pool is not None else features.mean(-2)

    def classify(self, features: jax.Array, training: Training | None = None) -> dict[str, jax.Array]:
        """Features [B, D] (or [T, B, D], one per task in alphabetical order) -> logits [B, C] of each task."""
        logits = {}
        for index, task in enumerate(sorted(self.heads)):
            own = None if training is None else training._replace(key=jax.random.fold_in(training.key, index))
            logits[task] = self.heads[task](features[index] if features.ndim == 3 else features, own)
        return logits

    def __call__(self, images: jax.Array, training: Training | None = None) -> dict[str, jax.Array]:
        """[B, H, W, 3] in -1..1 -> logits [B, C] of each task."""
        return self.classify(self.features(images), training)
