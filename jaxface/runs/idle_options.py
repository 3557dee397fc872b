"""Options that a run would not look at: one that was given for it is refused, one that came with a configuration file is told.

`IDLE` lists those that the configuration tells, `of_model` those that show once the model is made. How fast and in how much memory a run
trains (`encoder.remat`, `data.workers`, ...) is no effect that anyone could miss, and limits that are not reached are none either.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

from jaxface.adapters.low_rank import LowRank
from jaxface.adapters.places import linears
from jaxface.data.augment import Augment
from jaxface.data.task_files import read_tasks
from jaxface.errors import UserError, tell
from jaxface.models.variants import get_variant
from jaxface.runs.config import RANDOM, Config
from jaxface.runs.parts import Parts


class Idle(NamedTuple):
    """Options that have no effect.

    Attributes:
      names: dotted, as the command line has them.
      when: whether that is so.
      why: in words.
    """

    names: tuple[str, ...]
    when: Callable[[Config], bool]
    why: str


CHANGES = tuple(f"data.changes.{name}" for name in Augment.__dataclass_fields__)
IDLE = (
    Idle(("balancing",), lambda c: len(c.tasks) == 1, "the loss of one task has nothing to be balanced with"),
    Idle(("data.max_repeat",), lambda c: c.data.sampling != "balanced", "only balanced sampling repeats records"),
    Idle(CHANGES, lambda c: not c.data.augment, "no image is changed without data.augment"),
    Idle(("data.changes.strength",), lambda c: not c.data.changes.operations, "data.changes.operations is 0"),
    Idle(("data.changes.erase_area", "data.changes.erase_aspect"), lambda c: not c.data.changes.erase, "data.changes.erase is 0"),
    Idle(("optimizer.decay_vectors",), lambda c: not c.optimizer.weight_decay, "optimizer.weight_decay is 0"),
    Idle(("method.options.pool_inputs",), lambda c: bool(c.method.options.targets), "targets names all that is adapted"),
    Idle(("cluster.process", "cluster.processes"), lambda c: c.cluster.coordinator is None, "no cluster.coordinator is named"),
    Idle(("tasks_file",), lambda c: not _tasks_of(c) & {*c.tasks, *(c.definitions or ())}, "it describes no task of the run"),
)
USUAL = Config()


def _tasks_of(config: Config) -> set[str]:
    return set(read_tasks(Path(str(config.tasks_file))))


def value_of(config: Config, name: str) -> Any:
    """An option by its dotted name."""
    return reduce(getattr, name.split("."), config)


def idle_options(config: Config) -> dict[str, str]:
    """Those options of `IDLE` that are not as usual and have no effect, with why."""
    return {name: idle.why for idle in IDLE for name in _unusual(config, idle.names) if idle.when(config)}


def of_model(config: Config, parts: Parts) -> dict[str, str]:
    """The same of those that the model tells, which is made."""
    encoder, groups = parts.build().encoder, parts.groups.values()
    own = encoder.config
    named = get_variant(config.encoder.variant)
    kind = ("width", "depth", "patch", "activation", "pixels")
    adapted = [name for name, linear in linears(encoder) if isinstance(linear.kernel, LowRank)]
    says = f"method {config.method.name} trains nothing at that rate"
    found = {
        "optimizer.backbone": (not any(group.rate == "backbone" for group in groups), says),
        "optimizer.pool": (not any(group.rate == "pool" for group in groups), says),
        "optimizer.plus_ratio": (not any(group.plus for group in groups), says),
        "encoder.variant": (
            config.encoder.weights != RANDOM and any(getattr(named, field) != getattr(own, field) for field in kind),
            f"{config.encoder.weights} is of another one",
        ),
        "method.options.pool_inputs": (encoder.pool is None, "the encoder has no attention pool"),
        "method.options.split_qkv": (not any(re.search(r"(attn\.qkv|pool\.kv)$", name) for name in adapted), "no fused kernel is adapted"),
    }
    return {name: found[name][1] for name in _unusual(config, found) if found[name][0]}


def _unusual(config: Config, names: Collection[str]) -> list[str]:
    return [name for name in names if value_of(config, name) != value_of(USUAL, name)]


def refuse_or_tell(config: Config, idle: Mapping[str, str], given: Collection[str]) -> None:
    """Says which options of a run have no effect. Raises UserError for one that was given.

    Args:
      idle: why, by name.
      given: names of the options that somebody gave for this very run.
    """
    for name, why in sorted(idle.items(), key=lambda item: item[0] not in given):
        said = f"{name} {value_of(config, name)}: it has no effect, {why}"
        if name in given:
            raise UserError(f"{said}: leave it out")
        tell(f"{config.name}: {said}")
