"""AdamW's settings in a run's configuration, and the rates that they give."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import optax

from jaxface.adapters.methods import Group
from jaxface.errors import UserError
from jaxface.ranges import Range, ranged

MOST_EPOCHS = 10**6
Rate = Annotated[float, Range(above=0, high=100)]
"""A learning rate."""


@ranged("optimizer.")
class OptimizerOptions:
    """AdamW's settings; the defaults are the thesis's (section 3.1, rates: 3.3 to 3.6).

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
      warmup_steps: steps over which all rates rise in a line; the first has 1 / (warmup_steps + 1) of them.
      clip_norm: gradients are scaled down to this global norm; 0 leaves them.
      cosine: lower the rates along a half cosine to zero behind the last step, and never on plateaus.
      average: decay of a moving average of what trains and of batch statistics, which is validated, kept and tested in their place; 0 for
        none.
    """

    backbone: Rate = 1e-5
    pool: Rate = 1e-4
    head: Rate = 1e-4
    plus_ratio: Annotated[float, Range(above=0, high=1000)] = 6.0
    weight_decay: Annotated[float, Range(0, 100)] = 0.01
    decay_vectors: bool = True
    plateau_factor: Annotated[float, Range(above=0, high=1)] = 0.1
    plateau_patience: Annotated[int, Range(0, MOST_EPOCHS)] = 5
    early_stop: Annotated[int, Range(1, MOST_EPOCHS)] = 10
    warmup_steps: Annotated[int, Range(0, 10**7)] = 0
    clip_norm: Annotated[float, Range(0, 1e6)] = 0.0
    cosine: bool = False
    average: Annotated[float, Range(0, below=1)] = 0.0

    def __post_init__(self) -> None:
        for name in ("plateau_factor", "plateau_patience") if self.cosine else ():
            if getattr(self, name) != getattr(OptimizerOptions, name):
                raise UserError(f"optimizer.{name} {getattr(self, name)}: a cosine has no plateaus; leave it or the cosine out")

    def rate(self, group: Group) -> float:
        """The learning rate of a group. Raises UserError for an unknown rate name."""
        if group.rate not in ("backbone", "pool", "head"):
            raise UserError(f"group {group.pattern!r} asks for the learning rate {group.rate!r}; known: backbone, pool, head")
        return getattr(self, group.rate) * (self.plus_ratio if group.plus else 1.0)

    def schedule(self, total_steps: int) -> optax.Schedule:
        """The factor on all rates at a step, without the plateau's. Raises UserError for a warm-up that leaves no step to the cosine."""
        if self.cosine and self.warmup_steps >= total_steps:
            raise UserError(f"optimizer.warmup_steps {self.warmup_steps}: expected fewer than the run's {total_steps} steps")
        return lambda update: self.factor_at(jnp.asarray(update, float), total_steps, jnp)

    def factor_at(self, update: Any, total_steps: int, xp: ModuleType = np) -> Any:
        """The factor on all rates in the update after the first `update` ones, without the plateau's; computed by NumPy or `xp`."""
        rise = xp.minimum(1.0, (update + 1) / (self.warmup_steps + 1))
        if not self.cosine:
            return rise
        share = xp.clip((update - self.warmup_steps) / max(total_steps - self.warmup_steps, 1), 0.0, 1.0)
        return rise * 0.5 * (1 + xp.cos(math.pi * share))
