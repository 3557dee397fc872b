"""How the tasks' losses become one: a balancer is one entry, chosen by a word in the configuration (thesis, section 3.3.3).

Another balancer is a subclass of `Balancer` under a new name in `BALANCERS`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxface.errors import UserError

Losses = dict[str, jax.Array]


class Balancer:
    """Equal, fixed weights; the base of the others."""

    def parameters(self, tasks: tuple[str, ...]) -> dict[str, jax.Array]:
        """What is trained with the model."""
        return {}

    def state(self, tasks: tuple[str, ...]) -> dict[str, Any]:
        """What is carried from step to step without a gradient."""
        return {}

    def weights(self, parameters: dict[str, jax.Array], state: dict[str, Any], tasks: tuple[str, ...]) -> Losses:
        """The factor of each task's loss."""
        return {task: jnp.ones(()) for task in tasks}

    def total(self, losses: Losses, present: Losses, parameters: dict[str, jax.Array], state: dict[str, Any]) -> jax.Array:
        """The loss that is minimised. A task without a label in the batch (`present` 0) adds nothing."""
        weights = self.weights(parameters, state, tuple(losses))
        return sum(present[task] * weights[task] * losses[task] for task in losses)

    def after_step(self, losses: Losses, present: Losses, state: dict[str, Any]) -> dict[str, Any]:
        """The state after a batch."""
        return state

    def after_epoch(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state at the start of the next epoch."""
        return state


class Uncertainty(Balancer):
    """UW: sum of exp(-s) L + s / 2 with s = log sigma^2 learned per task (Kendall et al. 2018; thesis, eq. 3.5)."""

    def parameters(self, tasks: tuple[str, ...]) -> dict[str, jax.Array]:
        return {task: jnp.zeros(()) for task in tasks}

    def weights(self, parameters: dict[str, jax.Array], state: dict[str, Any], tasks: tuple[str, ...]) -> Losses:
        return {task: jnp.exp(-parameters[task]) for task in tasks}

    def total(self, losses: Losses, present: Losses, parameters: dict[str, jax.Array], state: dict[str, Any]) -> jax.Array:
        weighted = super().total(losses, present, parameters, state)
        return weighted + sum(present[task] * parameters[task] / 2 for task in losses)


class MovingAverage(Balancer):
    """EMA: each task divided by a running mean of its own loss, the weights renewed at the start of each epoch."""

    beta = 0.95

    def state(self, tasks: tuple[str, ...]) -> dict[str, Any]:
        return {
            "average": {task: jnp.zeros(()) for task in tasks},
            "seen": {task: jnp.zeros(()) for task in tasks},
            "weight": {task: jnp.ones(()) for task in tasks},
        }

    def weights(self, parameters: dict[str, jax.Array], state: dict[str, Any], tasks: tuple[str, ...]) -> Losses:
        return {task: state["weight"][task] for task in tasks}

    def after_step(self, losses: Losses, present: Losses, state: dict[str, Any]) -> dict[str, Any]:
        average, seen = dict(state["average"]), dict(state["seen"])
        for task, loss in losses.items():
            # the first loss seen starts the mean: beta L(t) + (1 - beta) L(t - 1)
            mixed = jnp.where(seen[task] > 0, self.beta * loss + (1 - self.beta) * average[task], loss)
            average[task] = jnp.where(present[task] > 0, mixed, average[task])
            seen[task] = jnp.maximum(seen[task], present[task])
        return {**state, "average": average, "seen": seen}

    def after_epoch(self, state: dict[str, Any]) -> dict[str, Any]:
        renewed = {
            task: jnp.where(state["seen"][task] > 0, 1 / jnp.maximum(state["average"][task], 1e-8), weight)
            for task, weight in state["weight"].items()
        }
        return {**state, "weight": renewed}


BALANCERS: dict[str, type[Balancer]] = {"fixed": Balancer, "uw": Uncertainty, "ema": MovingAverage}


def get_balancer(name: str) -> Balancer:
    """The balancer of that name. Raises UserError that lists the known ones."""
    if name not in BALANCERS:
        raise UserError(f"no loss balancer {name!r}; known: {', '.join(BALANCERS)}")
    return BALANCERS[name]()
