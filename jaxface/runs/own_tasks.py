"""The tasks of a run that are not built in: as its sets or a file describe them, kept in its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jaxface.data.records import joined_tasks, read_labels, splits
from jaxface.data.task_files import read_tasks, task_to
from jaxface.data.tasks import BUILT_IN, Task, known, with_coarse
from jaxface.errors import UserError
from jaxface.registry import require_known
from jaxface.runs.config import Config


def settled(config: Config) -> Config:
    """The configuration with the definitions of its tasks, where `--tasks-file` or its sets have some.

    Raises UserError for a task that nobody describes, or that is not the one of a set's labels.
    """
    of_sets = joined_tasks(config.data.sets)
    of_file = read_tasks(Path(config.tasks_file)) if config.tasks_file is not None else {}
    for name, task in of_file.items():
        if name in of_sets and task != of_sets[name]:
            raise UserError(
                f"{config.tasks_file}: task {name} is not the one of {', '.join(config.data.sets)}: prepare them with this file"
            )
    for name in of_file.keys() & of_sets.keys():
        of_file[name] = replace(of_file[name], center=of_sets[name].center, scale=of_sets[name].scale)
    everything = {**config.known, **of_sets, **of_file}
    require_known("task", config.tasks, everything)
    own = [everything[name] for name in with_coarse(config.tasks, everything) if everything[name] != BUILT_IN.get(name)]
    config = replace(config, definitions={task.name: task_to(task) for task in own} or None)
    for name in config.tasks:
        config.loss(name)
    return config


def tasks_in(sets: Sequence[str], tasks: Sequence[str]) -> tuple[str, ...]:
    """The tasks, if one of them has a training label in the sets; else those that have."""
    found: dict[str, Task] = joined_tasks(sets)
    labels = [read_labels(folder, "train") for folder in sets if "train" in splits(folder)]
    labelled = [name for name in found if any(name in own and known(own[name]).any() for own in labels)]
    return tuple(tasks) if set(tasks) & set(labelled) or not labelled else tuple(labelled)
