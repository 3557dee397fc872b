"""The loss of one task over a batch in which some labels are missing."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def masked_cross_entropy(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy summed over the samples that carry a label, and their number.

    The sums of all devices divided by their counts give the mean over the whole batch, however the labels are spread.

    Args:
      logits: [B, C] float32.
      labels: [B] int, negative where missing.
    """
    present = labels >= 0
    log_p = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_p, jnp.maximum(labels, 0)[:, None], 1)[:, 0]
    return -jnp.sum(jnp.where(present, picked, 0)), jnp.sum(present)


def masked_correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The number of samples whose largest logit is their label; a missing label counts as neither."""
    return jnp.sum((jnp.argmax(logits, -1) == labels) & (labels >= 0))
