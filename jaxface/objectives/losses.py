"""The loss of one task over a batch in which some labels are missing: one entry each, named in the configuration.

Another loss is a function below `@register_loss("name")`, with the kind of head output that it is for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxface.data.kinds import known
from jaxface.registry import Registry

Values = Callable[[jax.Array, jax.Array], jax.Array]


class Loss(NamedTuple):
    """A loss of single samples.

    Attributes:
      values: (head's output [B, ...], labels [B, ...] as the task's kind has them as targets: of classes 0..C-1) -> [B].
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
    distance = (jnp.arange(logits.shape[-1]) - labels[:, None]).astype(logits.dtype)
    target = jax.nn.softmax(-0.5 * jnp.square(distance / spread))
    return -jnp.sum(target * jax.nn.log_softmax(logits), -1)


@register_loss("binary_cross_entropy", output="labels")
def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean over the labels [B, C] that are 0 or 1, and not missing, of the binary cross-entropy of logits [B, C]."""
    there = labels >= 0
    values = jnp.where(there, jax.nn.softplus(logits) - logits * labels.astype(logits.dtype), 0)
    return jnp.sum(values, -1) / jnp.maximum(jnp.sum(there, -1, dtype=logits.dtype), 1)


@register_loss("huber", output="number")
def huber(outputs: jax.Array, numbers: jax.Array) -> jax.Array:
    """Half the square of the error up to one standard deviation, its size from there on (Huber 1964); outputs [B, 1], numbers [B]."""
    error = jnp.abs(outputs[:, 0] - numbers)
    return jnp.where(error <= 1, 0.5 * jnp.square(error), error - 0.5)


@register_loss("squared", output="number")
def squared(outputs: jax.Array, numbers: jax.Array) -> jax.Array:
    """The squared error of outputs [B, 1]."""
    return jnp.square(outputs[:, 0] - numbers)


@register_loss("absolute", output="number")
def absolute(outputs: jax.Array, numbers: jax.Array) -> jax.Array:
    """The absolute error of outputs [B, 1]."""
    return jnp.abs(outputs[:, 0] - numbers)


def _classes(labels: jax.Array) -> jax.Array:
    return jnp.maximum(labels, 0)


def masked_sum(
    loss: Loss,
    outputs: jax.Array,
    labels: jax.Array,
    mixed: tuple[jax.Array, jax.Array] | None = None,
    targets: Callable[[jax.Array], jax.Array] = _classes,
) -> jax.Array:
    """The loss summed over the samples that carry a label.

    The sums of all devices divided by the number of all labels give the mean over the whole batch, however the labels are spread.

    Args:
      outputs: [B, ...] float32.
      labels: [B, ...], missing where `jaxface.data.kinds.known` says so.
      mixed: of mixed images the share [B] that has these labels, and the labels [B, ...] of the rest, missing where these are.
      targets: labels as the loss takes them, finite where they are missing.
    """
    values = loss.values(outputs, targets(labels))
    if mixed is not None:
        share, other = mixed
        values = share * values + (1 - share) * loss.values(outputs, targets(other))
    return jnp.sum(jnp.where(known(labels), values, 0))
