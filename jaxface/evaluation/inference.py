"""Runs a model over every record of a split."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from jaxface.data.tasks import get_task
from jaxface.evaluation.metrics import probabilities
from jaxface.evaluation.predictions import Predictions
from jaxface.progress import Track
from jaxface.training.step import shard


def predict_all(
    predict: Callable[..., Any], arrays: Any, batches: Iterable[dict[str, Any]], tasks: tuple[str, ...], *, title: str, total: int
) -> Predictions:
    """The model's answers on all records of `batches`, each exactly once.

    Args:
      predict: what `jaxface.training.step.make_predict` returns.
      arrays: the model's arrays by name, replicated.
      batches: evaluation batches; rows with `valid` False are padding.
      tasks: names of the tasks.
      title: words for the progress display.
      total: number of records.
    """
    columns: dict[str, list[Any]] = {"id": [], "source": [], "person": [], **{f"label {t}": [] for t in tasks}, **{t: [] for t in tasks}}
    with Track(title, total, unit="images") as track:
        for batch in batches:
            logits, _ = predict(arrays, shard(batch["image"]))
            valid = np.asarray(batch["valid"])
            for name in ("id", "source", "person"):
                columns[name].append(np.asarray(batch[name], object)[valid])
            for task in tasks:
                columns[f"label {task}"].append(np.asarray(batch["labels"][task])[valid])
                columns[task].append(np.asarray(logits[task]).reshape(len(valid), -1)[valid])
            track.advance(int(valid.sum()))
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    return Predictions(
        tasks=tuple(get_task(task) for task in tasks),
        id=joined["id"],
        labels={task: joined[f"label {task}"] for task in tasks},
        logits={task: joined[task] for task in tasks},
        source=joined["source"],
        person=joined["person"],
    )


def mean_losses(predictions: Predictions) -> dict[str, float]:
    """Mean cross-entropy of each task over its labelled records; NaN where there is none."""
    losses = {}
    for task in predictions.tasks:
        labels = predictions.labels[task.name]
        known = labels >= 0
        p = probabilities(predictions.logits[task.name][known])[np.arange(known.sum()), labels[known]]
        losses[task.name] = float(-np.log(np.maximum(p, 1e-30)).mean()) if known.any() else float("nan")
    return losses
