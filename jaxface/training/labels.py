"""What there is to learn from, looked at before anything is trained: a head that never saw a label answers like one that did."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from jaxface.cluster import is_first
from jaxface.data.pipeline import Joined, count_records
from jaxface.data.tasks import MISSING, get_task, with_coarse
from jaxface.errors import UserError

FEW = 10
"""Training labels of a class below which it is named."""


def check_labels(sets: Sequence[str], tasks: Sequence[str]) -> None:
    """Names classes with few training labels and tasks that nothing validates, in one line each.

    Raises UserError for a task without any training label, and where no validation record has a label of a task.
    """
    train, where = Joined(sets, "train", tasks), ", ".join(sets)
    counts = {task: np.bincount(train.labels[task][train.labels[task] != MISSING], minlength=get_task(task).num_classes) for task in tasks}
    never = [task for task in tasks if not counts[task].any()]
    if never:
        rest = [task for task in tasks if task not in never]
        advice = f"leave it out with --tasks {' '.join(rest)}" if rest else "name sets that have it"
        raise UserError(f"none of the {len(train)} training records of {where} has a label of {', '.join(never)}: {advice}")
    validated = set()
    if count_records(sets, "validation", missing_ok=True):
        held = Joined(sets, "validation", with_coarse(tasks)).labels
        validated = {task for task, labels in held.items() if (labels != MISSING).any()}
    unvalidated = [task for task in tasks if task not in validated]
    if not validated.intersection(with_coarse(tasks)):
        raise UserError(
            f"no validation record of {where} has a label of {', '.join(tasks)}: training could not tell when to stop; "
            "prepare a set with more records, or with a validation split of its own"
        )
    few = [
        f"{task} {name} {count}"
        for task in tasks
        if get_task(task).num_classes <= FEW
        for name, count in zip(get_task(task).classes, counts[task].tolist(), strict=True)
        if count < FEW
    ]
    for words, named in ((f"classes with fewer than {FEW} training labels", few), ("tasks without a validation label", unvalidated)):
        if named and is_first():
            print(f"{words}: {', '.join(named)}", file=sys.stderr)
