"""Answers of a made-up model."""

import numpy as np

from jaxface.data.tasks import AGE, EMOTION, GENDER
from jaxface.evaluation.predictions import Predictions

TASKS = (AGE, GENDER, EMOTION)


def answers(skill, seed=0, count=60, source="drawn", tasks=TASKS):
    """Predictions whose logits favour the label by `skill`."""
    random = np.random.default_rng(seed)
    labels = {task.name: random.integers(-1, task.num_classes, count) for task in tasks}
    logits = {task.name: random.normal(size=(count, task.num_classes)) for task in tasks}
    for task in tasks:
        known = np.flatnonzero(labels[task.name] >= 0)
        logits[task.name][known, labels[task.name][known]] += skill
    return Predictions(tasks, [f"face/{index:03d}" for index in range(count)], labels, logits, source=[source] * count)
