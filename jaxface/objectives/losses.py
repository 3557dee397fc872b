"""The loss of one task over a batch in which some labels are missing: one entry each, named in the configuration.

Another loss is a function below `@register_loss("name")`, with the kind of head output that it is for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxface.registry import Registry

Values = Callable[[jax.Array, jax.Array], jax.Array]


class Loss(NamedTuple):
    """A loss of single samples.

    Attributes:
      values: (head's output [B, ...], labels [B] in 0..C-1) -> [B].
      output: the head's output that it is for, a key of `jaxface.models.heads.OUTPUTS`.
    """

    values: Values
    output: str = "classes"


LOSSES: Registry[Loss] = Registry("loss")
get_loss = LOSSES.get


def register_loss(name: str, *, output: str = "classes") -> Callable[[Values], Values]:
    """Decorator that makes a loss known by its name."""

    def add(values: Values) -> Values:
        return LOSSES.add(name, Loss(values, output)).values

    return add


@register_loss("cross_entropy")
def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Unweighted cross-entropy of logits [B, C] (thesis, section 3.1)."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]


@register_loss("coral", output="ranks")
def coral(ranks: jax.Array, labels: jax.Array) -> jax.Array:
    """CORAL: the sum over k of the binary cross-entropy of "later than class k", from logits [B, C - 1] (Cao et al. 2020, eq. 4)."""
    later = labels[:, None] > jnp.arange(ranks.shape[-1])
    return -jnp.sum(jnp.where(later, jax.nn.log_sigmoid(ranks), jax.nn.log_sigmoid(-ranks)), -1)


@register_loss("soft")
def soft(logits: jax.Array, labels: jax.Array, spread: float = 1.0) -> jax.Array:
    """Cross-entropy against a bell around the label, `spread` classes wide: being off by one costs less (Diaz and Marathe 2019)."""
    distance = jnp.arange(logits.shape[-1]) - labels[:, None]
    target = jax.nn.softmax(-0.5 * jnp.square(distance / spread))
    return -jnp.sum(target * jax.nn.log_softmax(logits), -1)


def masked_sum(loss: Loss, outputs: jax.Array, labels: jax.Array, mixed: tuple[jax.Array, jax.Array] | None = None) -> jax.Array:
    """The loss summed over the samples that carry a label.

    The sums of all devices divided by the number of all labels give the mean over the whole batch, however the labels are spread.

    Args:
      outputs: [B, ...] float32.
      labels: [B] int, negative where missing.
      mixed: of mixed images the share [B] that has these labels, and the labels [B] of the rest, missing where these are.
    """
    values = loss.values(outputs, jnp.maximum(labels, 0))
    if mixed is not None:
        share, other = mixed
        values = share * values + (1 - share) * loss.values(outputs, jnp.maximum(other, 0))
    return jnp.sum(jnp.where(labels >= 0, values, 0))


def masked_correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The number of samples whose largest logit [B, C] is their label; a missing label counts as neither."""
    return jnp.sum((jnp.argmax(logits, -1) == labels) & (labels >= 0))
