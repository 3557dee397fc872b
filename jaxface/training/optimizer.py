"""AdamW with a learning rate per group of parameters, and the schedule that lowers all of them on a plateau."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import optax

from jaxface.adapters.methods import Group, group_of
from jaxface.errors import UserError


@dataclass(frozen=True)
class OptimizerOptions:
    """AdamW's settings; the defaults are the thesis's (section 3.3).

    Attributes:
      backbone: learning rate of what trains in the blocks.
      pool: learning rate of what trains in the attention pool.
      head: learning rate of the heads, their batch norms and the loss balancer.
      plus_ratio: LoRA+'s lambda: B takes this times A's rate.
      weight_decay: decoupled; parameters of one axis (norms, biases, magnitudes) are not decayed where `decay_vectors` is off.
      decay_vectors: decay one-axis parameters too, as torch's AdamW does by default.
      plateau_factor: the rates are multiplied by this when the plateau lasts.
      plateau_patience: epochs without a better validation loss before that.
      early_stop: epochs without improvement before training ends.
      warmup_steps: linear rise of all rates from zero.
      clip_norm: gradients are scaled down to this global norm; 0 leaves them.
      cosine: lower the rates along a half cosine to zero at the last step, instead of on plateaus.
      average: decay of a moving average of what trains, which is validated, kept and tested in its place; 0 for none.
    """

    backbone: float = 1e-5
    pool: float = 1e-4
    head: float = 1e-4
    plus_ratio: float = 6.0
    weight_decay: float = 0.01
    decay_vectors: bool = True
    plateau_factor: float = 0.1
    plateau_patience: int = 5
    early_stop: int = 10
    warmup_steps: int = 0
    clip_norm: float = 0.0
    cosine: bool = False
    average: float = 0.0

    def rate(self, group: Group) -> float:
        """The learning rate of a group. Raises UserError for an unknown rate name."""
        if group.rate not in ("backbone", "pool", "head"):
            raise UserError(f"group {group.pattern!r} asks for the learning rate {group.rate!r}; known: backbone, pool, head")
        return getattr(self, group.rate) * (self.plus_ratio if group.plus else 1.0)

    def schedule(self, total_steps: int) -> optax.Schedule:
        """The factor on all rates at a step, without the plateau's. Raises UserError for a warm-up that leaves no step to the cosine."""
        if self.cosine:
            if self.warmup_steps >= total_steps:
                raise UserError(f"optimizer.warmup_steps {self.warmup_steps}: expected fewer than the run's {total_steps} steps")
            return optax.warmup_cosine_decay_schedule(0.0 if self.warmup_steps else 1.0, 1.0, self.warmup_steps, total_steps)
        return optax.linear_schedule(0.0, 1.0, self.warmup_steps) if self.warmup_steps else optax.constant_schedule(1.0)

    def factor_at(self, step: int, total_steps: int) -> float:
        """The factor of `schedule` at a step, without a device."""
        rise = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        if not self.cosine or step < self.warmup_steps:
            return rise
        share = min(1.0, (step - self.warmup_steps) / max(total_steps - self.warmup_steps, 1))
        return 0.5 * (1 + math.cos(math.pi * share))


def group_parameters(names: Iterable[str], groups: Sequence[Group]) -> dict[str, Group]:
    """The group of every parameter that trains. Raises UserError for a group that no parameter belongs to."""
    found = {name: group for name in names if (group := group_of(name.split("."), groups)) is not None}
    unused = [group.pattern for group in groups if group not in found.values()]
    if unused:
        raise UserError(f"no parameter matches {unused[0]!r}, which the method says to train")
    return found


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
