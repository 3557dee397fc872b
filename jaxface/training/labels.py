"""What there is to learn from, looked at before anything is trained: a head that never saw a label answers like one that did."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxface.cluster import is_first
from jaxface.data.discovery import FEW
from jaxface.data.pipeline import Joined, count_records
from jaxface.data.sampling import repeats, replicas, sample_weights
from jaxface.data.tasks import TASKS, Task, known, with_coarse
from jaxface.errors import UserError

MOST = 50
"""Classes of a task up to which those with few labels are named."""
OFTEN = 20
"""Draws of one record in an epoch from which on they are told."""


def check_labels(
    sets: Sequence[str],
    tasks: Sequence[str],
    known_tasks: Mapping[str, Task] | None = None,
    *,
    sampling: str = "shuffle",
    most: float = 0.0,
    least: int = 1,
) -> None:
    """Names classes with few training labels, with how often those are drawn, and tasks that nothing validates, in one line each.

    Args:
      known_tasks: by name; the process's own if None.
      sampling, most: of the run, as `jaxface.data.sampling.make_order` takes them.
      least: records that training has to draw from: batch norm makes one of all copies of an image, which is nothing.

    Raises UserError for a task without any training label, for fewer records, and where no validation record has a label of a task.
    """
    own = known_tasks or dict(TASKS.items())
    evaluated = with_coarse(tasks, own)
    train, where = Joined(sets, "train", tasks), ", ".join(sets)
    counts = {name: np.array(own[name].of.counts(own[name], train.labels[name])) for name in tasks}
    never = [task for task in tasks if not known(train.labels[task]).any()]
    if never:
        rest = [task for task in tasks if task not in never]
        advice = f"leave it out with --tasks {' '.join(rest)}" if rest else "name sets that have it"
        raise UserError(f"none of the {len(train)} training records of {where} has a label of {', '.join(never)}: {advice}")
    records = len(train) if sampling == "shuffle" else np.count_nonzero(replicas(train.labels))
    if records < least:
        raise UserError(f"{where}: {records} training record to learn from; expected at least {least}, for batch norm, or method lp")
    validated = set()
    if count_records(sets, "validation", missing_ok=True):
        held = Joined(sets, "validation", evaluated).labels
        validated = {task for task, labels in held.items() if known(labels).any()}
    unvalidated = [task for task in tasks if task not in validated]
    if not validated.intersection(evaluated):
        raise UserError(
            f"no validation record of {where} has a label of {', '.join(tasks)}: training could not tell when to stop; "
            "prepare a set with more records, or with a validation split of its own"
        )
    often = drawn(train.labels, sampling, most)
    few = [
        f"{task} {name} {count}{often(task, index)}"
        for task in tasks
        if own[task].num_classes <= MOST
        for index, (name, count) in enumerate(zip(own[task].classes, counts[task].tolist(), strict=False))
        if count < FEW
    ]
    for words, named in ((f"classes with fewer than {FEW} training labels", few), ("tasks without a validation label", unvalidated)):
        if named and is_first():
            print(f"{words}: {', '.join(named)}", file=sys.stderr)


def drawn(labels: Mapping[str, np.ndarray], sampling: str, most: float) -> Callable[[str, int], str]:
    """Words for how often balanced sampling draws each record of a class (of a task, by its index) in an epoch, where that is often."""
    if sampling != "balanced":
        return lambda task, index: ""
    often = repeats(labels, sample_weights(labels, replicas(labels), most))

    def words(task: str, index: int) -> str:
        times = often[task][index] if index < len(often[task]) else 0
        return f" (each drawn {times:.0f} times an epoch; --data.max-repeat caps that)" if times >= OFTEN else ""

    return words
