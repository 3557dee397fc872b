"""Runs a model over every record of a split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from jaxface.data.tasks import get_task
from jaxface.evaluation.metrics import probabilities
from jaxface.evaluation.predictions import Predictions
from jaxface.progress import Track
from jaxface.training.step import shard


def predict_all(
    predict: Callable[..., Any],
    arrays: Any,
    batches: Iterable[dict[str, Any]],
    tasks: tuple[str, ...],
    *,
    title: str,
    total: int,
    keep_features: bool = False,
) -> Predictions:
    """The model's answers on all records of `batches`, each exactly once.

    Args:
      predict: what `jaxface.training.step.make_predict` returns.
      arrays: the model's arrays by name, replicated.
      batches: evaluation batches; rows with `valid` False are padding.
      tasks: names of the tasks.
      title: words for the progress display.
      total: number of records.
      keep_features: keep the encoder's output, too: one for all tasks, or one a task where it has several.
    """
    columns: defaultdict[str, list[Any]] = defaultdict(list)
    with Track(title, total, unit="images") as track:
        for batch in batches:
            logits, features = predict(arrays, shard(batch["image"]))
            valid = np.asarray(batch["valid"])
            for name in ("id", "source", "person"):
                columns[name].append(np.asarray(batch[name], object)[valid])
            for task in tasks:
                columns[f"label {task}"].append(np.asarray(batch["labels"][task])[valid])
                columns[task].append(np.asarray(logits[task]).reshape(len(valid), -1)[valid])
            for name, values in _features(features, tasks).items() if keep_features else ():
                columns[name].append(values[valid])
            track.advance(int(valid.sum()))
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    return Predictions(
        tasks=tuple(get_task(task) for task in tasks),
        id=joined["id"],
        labels={task: joined[f"label {task}"] for task in tasks},
        logits={task: joined[task] for task in tasks},
        source=joined["source"],
        person=joined["person"],
        features=joined.get("features"),
        task_features={task: joined[f"features {task}"] for task in tasks if f"features {task}" in joined},
    )


def _features(features: Any, tasks: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Columns [B, D] of the features [devices, B, D], or of those per task, in alphabetical order, [devices, T, B, D]."""
    features = np.asarray(features, np.float32)
    if features.ndim == 3:
        return {"features": features.reshape(-1, features.shape[-1])}
    return {f"features {task}": features[:, i].reshape(-1, features.shape[-1]) for i, task in enumerate(sorted(tasks))}


def mean_losses(predictions: Predictions) -> dict[str, float]:
    """Mean cross-entropy of each task over its labelled records; NaN where there is none."""
    losses = {}
    for task in predictions.tasks:
        labels = predictions.labels[task.name]
        known = labels >= 0
        p = probabilities(predictions.logits[task.name][known])[np.arange(known.sum()), labels[known]]
        losses[task.name] = float(-np.log(np.maximum(p, 1e-30)).mean()) if known.any() else float("nan")
    return losses
