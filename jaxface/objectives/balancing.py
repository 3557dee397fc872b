"""How the tasks' losses become one: a balancer is one entry, named in the configuration (thesis, section 3.7.3).

Another balancer is a subclass of `Balancer` below `@register_balancer("name")`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxface.registry import Registry

Losses = dict[str, jax.Array]
State = dict[str, Any]


def each(tasks: tuple[str, ...] | Losses, value: float) -> Losses:
    """The same number for every task."""
    return {task: jnp.full((), value, jnp.float32) for task in tasks}


BALANCERS: Registry[type[Balancer]] = Registry("loss balancer")
register_balancer = BALANCERS.register


@register_balancer("fixed")
class Balancer:
    """Equal, fixed weights; the base of the others. The loss that is minimised: sum of weight times loss, and a penalty."""

    needs_norms = False
    """Whether `after_step` wants the norm of each loss's gradient at the features that the heads share."""

    def parameters(self, tasks: tuple[str, ...]) -> Losses:
        """What is trained with the model."""
        return {}

    def state(self, tasks: tuple[str, ...]) -> State:
        """What is carried from step to step without a gradient."""
        return {}

    def weights(self, parameters: Losses, state: State, tasks: tuple[str, ...]) -> Losses:
        """The factor of each task's loss; must not depend on the losses of this batch."""
        return each(tasks, 1)

    def penalty(self, parameters: Losses, present: Losses) -> jax.Array:
        """What is added to the weighted losses."""
        return jnp.zeros(())

    def total(self, losses: Losses, present: Losses, parameters: Losses, state: State, *, share: float = 1.0) -> jax.Array:
        """The loss that is minimised. A task without a label in the batch (`present` 0) adds nothing.

        Args:
          share: of the penalty, where the losses are a part of the batch's.
        """
        weights = self.weights(parameters, state, tuple(losses))
        return sum(present[task] * weights[task] * losses[task] for task in losses) + share * self.penalty(parameters, present)

    def after_step(self, losses: Losses, present: Losses, state: State, norms: Losses) -> State:
        """The state after a batch."""
        return state

    def after_epoch(self, state: State) -> State:
        """The state at the start of the next epoch."""
        return state


@register_balancer("uw")
class Uncertainty(Balancer):
    """UW: sum of exp(-s) L + s / 2 with s = log sigma^2 learned per task (Kendall et al. 2018; thesis, section 3.7.3).

    A task that a batch has no label of adds its s / 2, as in the formula.
    """

    def parameters(self, tasks: tuple[str, ...]) -> Losses:
        return each(tasks, 0)

    def weights(self, parameters: Losses, state: State, tasks: tuple[str, ...]) -> Losses:
        return {task: jnp.exp(-parameters[task]) for task in tasks}

    def penalty(self, parameters: Losses, present: Losses) -> jax.Array:
        return sum((parameters[task] / 2 for task in parameters), jnp.zeros(()))


@register_balancer("uw_present")
class UncertaintyOfPresent(Uncertainty):
    """UW whose s moves only with batches that have a label of its task."""

    def penalty(self, parameters: Losses, present: Losses) -> jax.Array:
        return sum((present[task] * parameters[task] / 2 for task in parameters), jnp.zeros(()))


class Weighted(Balancer):
    """Weights that are part of the state."""

    def state(self, tasks: tuple[str, ...]) -> State:
        return {"weight": each(tasks, 1)}

    def weights(self, parameters: Losses, state: State, tasks: tuple[str, ...]) -> Losses:
        return {task: state["weight"][task] for task in tasks}


@register_balancer("ema")
class MovingAverage(Weighted):
    """EMA: each task divided by a running mean of its own loss, the weights renewed at the start of each epoch."""

    beta = 0.95

    def state(self, tasks: tuple[str, ...]) -> State:
        return super().state(tasks) | {"average": each(tasks, 0), "seen": each(tasks, 0)}

    def after_step(self, losses: Losses, present: Losses, state: State, norms: Losses) -> State:
        average, seen = dict(state["average"]), dict(state["seen"])
        for task, loss in losses.items():
            # the first loss seen starts the mean: beta L(t) + (1 - beta) L(t - 1)
            mixed = jnp.where(seen[task] > 0, self.beta * loss + (1 - self.beta) * average[task], loss)
            average[task] = jnp.where(present[task] > 0, mixed, average[task])
            seen[task] = jnp.maximum(seen[task], present[task])
        return {**state, "average": average, "seen": seen}

    def after_epoch(self, state: State) -> State:
        renewed = {
            task: jnp.where(state["seen"][task] > 0, 1 / jnp.maximum(state["average"][task], 1e-8), weight)
            for task, weight in state["weight"].items()
        }
        return {**state, "weight": renewed}


@register_balancer("dwa")
class DynamicAverage(Weighted):
    """DWA: a softmax, times the number of tasks, of how the epoch's mean loss fell against the epoch before (Liu et al. 2019, eq. 7)."""

    temperature = 2.0

    def state(self, tasks: tuple[str, ...]) -> State:
        return super().state(tasks) | {name: each(tasks, 0) for name in ("sum", "count", "last")}

    def after_step(self, losses: Losses, present: Losses, state: State, norms: Losses) -> State:
        total = {task: state["sum"][task] + present[task] * losses[task] for task in losses}
        return {**state, "sum": total, "count": {task: state["count"][task] + present[task] for task in losses}}

    def after_epoch(self, state: State) -> State:
        tasks = tuple(state["weight"])
        mean = {task: jnp.where(state["count"][task] > 0, state["sum"][task] / jnp.maximum(state["count"][task], 1), 0) for task in tasks}
        known = {task: (mean[task] > 0) & (state["last"][task] > 0) for task in tasks}  # two epochs are needed
        ratios = jnp.stack([jnp.where(known[task], mean[task] / jnp.maximum(state["last"][task], 1e-8), 1) for task in tasks])
        weights = len(tasks) * jax.nn.softmax(ratios / self.temperature)
        return {"weight": dict(zip(tasks, weights, strict=True)), "sum": each(tasks, 0), "count": each(tasks, 0), "last": mean}


@register_balancer("gradnorm")
class GradNorm(Weighted):
    """GradNorm: weights move until every task's gradient has the size that its rate of training asks for (Chen et al. 2018).

    The norms are taken at the features that the heads share, where they cost a backward pass of the heads alone, and are measured in
    their mean over the tasks, so that the rate does not depend on their scale.
    """

    needs_norms = True
    alpha, rate = 1.5, 0.025

    def state(self, tasks: tuple[str, ...]) -> State:
        return super().state(tasks) | {"first": each(tasks, 0)}

    def after_step(self, losses: Losses, present: Losses, state: State, norms: Losses) -> State:
        tasks = tuple(losses)
        here = jnp.stack([present[task] for task in tasks])
        loss = jnp.stack([losses[task] for task in tasks])
        first = jnp.stack([state["first"][task] for task in tasks])
        first = jnp.where((first == 0) & (here > 0), loss, first)
        weight = jnp.stack([state["weight"][task] for task in tasks])
        norm = jnp.stack([norms[task] for task in tasks])
        count = jnp.maximum(here.sum(), 1)
        size = weight * norm
        mean = jnp.maximum((here * size).sum() / count, 1e-12)
        pace = loss / jnp.maximum(first, 1e-8)
        target = mean * (pace / jnp.maximum((here * pace).sum() / count, 1e-8)) ** self.alpha
        moved = jnp.maximum(weight - self.rate * here * jnp.sign(size - target) * norm / mean, 1e-3)
        moved = moved * len(tasks) / moved.sum()
        return {"weight": dict(zip(tasks, moved, strict=True)), "first": dict(zip(tasks, first, strict=True))}


def get_balancer(name: str) -> Balancer:
    """The balancer of that name. Raises UserError that lists the known ones."""
    return BALANCERS.get(name)()
