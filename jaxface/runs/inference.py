"""Runs a model over every record of a split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.data.tasks import TASKS, Task
from jaxface.devices import AXIS, shard
from jaxface.evaluation.predictions import Predictions
from jaxface.models.encoder import normalize_images
from jaxface.models.tree import Structure
from jaxface.progress import Track
from jaxface.registry import Registry

Arrays = dict[str, jax.Array]
Known = Registry[Task] | Mapping[str, Task]


def predict_all(
    predict: Callable[..., Any],
    arrays: Any,
    batches: Iterable[dict[str, Any]],
    tasks: Sequence[Task],
    *,
    title: str,
    total: int,
    keep_features: bool = False,
) -> Predictions:
    """The model's answers on all records of `batches`, each exactly once.

    Args:
      predict: what `jaxface.runs.inference.make_predict` returns.
      arrays: the model's arrays by name, replicated.
      batches: evaluation batches; rows with `valid` False are padding.
      tasks: whose answers and labels are kept.
      title: words for the progress display.
      total: number of records.
      keep_features: keep the encoder's output, too: one for all tasks, or one a task where it has several.
    """
    names, kept = tuple(task.name for task in tasks), tuple(tasks)
    columns: defaultdict[str, list[Any]] = defaultdict(list)
    with Track(title, total, unit="images") as track:
        for batch in batches:
            logits, features = predict(arrays, shard(batch["image"]))
            valid = np.asarray(batch["valid"])
            for name in ("id", "source", "person"):
                columns[name].append(np.asarray(batch[name], object)[valid])
            for task in names:
                columns[f"label {task}"].append(np.asarray(batch["labels"][task])[valid])
                columns[task].append(np.asarray(logits[task]).reshape(len(valid), -1)[valid])
            for name, values in _features(features, names).items() if keep_features else ():
                columns[name].append(values[valid])
            track.advance(int(valid.sum()))
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    return Predictions(
        tasks=kept,
        id=joined["id"],
        labels={task: joined[f"label {task}"] for task in names},
        logits={task: joined[task] for task in names},
        source=joined["source"],
        person=joined["person"],
        features=joined.get("features"),
        task_features={task: joined[f"features {task}"] for task in names if f"features {task}" in joined},
    )


def _features(features: Any, tasks: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Columns [B, D] of the features [devices, B, D], or of those per task, in alphabetical order, [devices, T, B, D]."""
    features = np.asarray(features, np.float32)
    if features.ndim == 3:
        return {"features": features.reshape(-1, features.shape[-1])}
    return {f"features {task}": features[:, i].reshape(-1, features.shape[-1]) for i, task in enumerate(sorted(tasks))}


def make_predict(structure: Structure, known: Known = TASKS) -> Callable[[Arrays, jax.Array], tuple[dict[str, jax.Array], jax.Array]]:
    """Evaluation over all local devices: (arrays by name, images uint8 [devices, B, H, W, 3]) -> (logits of each task, features).

    The tasks are those of `jaxface.data.tasks.with_coarse`.

    Args:
      known: tasks by name: those of the process, or of a run.
    """

    def predict(arrays: Arrays, images: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        model = structure.build(arrays)
        features = model.features(normalize_images(images))
        return with_coarse_logits(model.classify(features), known), features

    return jax.pmap(predict, axis_name=AXIS, devices=jax.local_devices())


def make_classify(structure: Structure, known: Known = TASKS) -> Callable[[Arrays, jax.Array], tuple[dict[str, jax.Array], jax.Array]]:
    """The heads' part of `make_predict`: (arrays by name, features [devices, B, D]) -> (logits of each task, the features)."""

    def classify(arrays: Arrays, features: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        return with_coarse_logits(structure.build(arrays).classify(features), known), features

    return jax.pmap(classify, axis_name=AXIS, devices=jax.local_devices())


def with_coarse_logits(logits: dict[str, jax.Array], known: Known = TASKS) -> dict[str, jax.Array]:
    """Adds log-probabilities [B, G] of the groups that fine classes fall into; the largest is the group of the fine answer."""
    coarse = {}
    for name, fine in logits.items():
        task = known[name]
        if task.coarse and task.coarse not in logits:
            member = jax.nn.one_hot(jnp.array(task.group), known[task.coarse].num_classes)
            values = jnp.log(jnp.maximum(jax.nn.softmax(fine) @ member, 1e-7))
            answer = member[jnp.argmax(fine, -1)] > 0
            coarse[task.coarse] = jnp.where(answer, jnp.maximum(values, values.max(-1, keepdims=True) + 1e-3), values)
    return logits | coarse
