"""AdamW with a learning rate per group of parameters, and the schedule that lowers all of them on a plateau."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import optax

from jaxface.adapters.methods import Group
from jaxface.runs.config import OptimizerOptions


def make_optimizer(options: OptimizerOptions, groups: dict[str, Group], total_steps: int) -> optax.GradientTransformation:
    """AdamW over a flat dictionary of parameters; names without a group (the loss balancer's) train with the heads."""
    rates = {group.name: options.rate(group) for group in groups.values()} | {"head": options.head}

    def decay_mask(parameters: dict[str, Any]) -> dict[str, bool]:
        return {name: options.decay_vectors or leaf.ndim > 1 for name, leaf in parameters.items()}

    def adamw(rate: float) -> optax.GradientTransformation:
        schedule = options.schedule(total_steps)
        return optax.adamw(lambda step: rate * schedule(step), weight_decay=options.weight_decay, mask=decay_mask)

    def labels(parameters: dict[str, Any]) -> dict[str, str]:
        return {name: groups[name].name if name in groups else "head" for name in parameters}

    grouped = optax.multi_transform({name: adamw(rate) for name, rate in rates.items()}, labels)
    return optax.chain(optax.clip_by_global_norm(options.clip_norm), grouped) if options.clip_norm else grouped


@dataclass
class Plateau:
    """Lowers a factor when a value has not fallen for `patience` epochs; the rule of torch's ReduceLROnPlateau.

    Attributes:
      factor: what the rates are multiplied by at a plateau.
      patience: epochs without improvement that are still tolerated.
      threshold: an improvement is a value below best * (1 - threshold).
      eps: the factor stays where lowering it would change it by no more than this.
    """

    factor: float
    patience: int
    threshold: float = 1e-4
    eps: float = 1e-8
    scale: float = 1.0
    best: float = field(default=float("inf"))
    bad_epochs: int = 0

    def update(self, value: float) -> float:
        """Takes an epoch's value and returns the factor for the next one."""
        if value < self.best * (1 - self.threshold):
            self.best, self.bad_epochs = value, 0
        else:
            self.bad_epochs += 1
        if self.bad_epochs > self.patience:
            lowered, self.bad_epochs = self.scale * self.factor, 0
            if self.scale - lowered > self.eps:
                self.scale = lowered
        return self.scale


@dataclass
class EarlyStop:
    """Which epoch is kept, and when there were enough without improvement (thesis, section 3.1).

    Kept is the epoch with the best accuracy. An improvement is a lower loss with one task, and a better accuracy with several, whose
    losses differ in scale.

    Attributes:
      patience: epochs in a row without improvement that end the training.
      by_loss: whether the loss counts, not the accuracy.
    """

    patience: int
    by_loss: bool
    loss: float = float("inf")
    accuracy: float = float("-inf")
    stale: int = 0

    def update(self, loss: float, accuracy: float) -> bool:
        """Takes an epoch's values and returns whether it is the best so far."""
        is_best = accuracy > self.accuracy
        improved = loss < self.loss if self.by_loss else is_best
        self.stale = 0 if improved else self.stale + 1
        self.loss, self.accuracy = min(loss, self.loss), max(accuracy, self.accuracy)
        return is_best

    @property
    def is_over(self) -> bool:
        return self.stale >= self.patience
