"""The training step: one pure function of a state and a batch, the same program on one device or many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxface.models.heads import Training
from jaxface.models.tree import Structure, arrays_of
from jaxface.training.balancing import Balancer
from jaxface.training.losses import masked_correct, masked_cross_entropy

AXIS = "devices"
BALANCE = "balance."
"""Prefix of the loss balancer's parameters among those that train."""

Arrays = dict[str, jax.Array]
Batch = dict[str, Any]
Metrics = dict[str, Any]


class TrainState(NamedTuple):
    """What a step changes.

    Attributes:
      step: number of updates made.
      trained: parameters that train, by name, in float32; the loss balancer's under "balance.".
      statistics: running statistics of batch norms.
      optimizer: the optimizer's state.
      balance: the loss balancer's state.
      scale: factor on all learning rates, which the plateau rule lowers.
    """

    step: jax.Array
    trained: Arrays
    statistics: Arrays
    optimizer: Any
    balance: dict[str, Any]
    scale: jax.Array


def normalize_images(images: jax.Array) -> jax.Array:
    """uint8 0..255 -> float32 -1..1: mean 0.5 and standard deviation 0.5 of the unit range."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def make_step(
    structure: Structure, tasks: tuple[str, ...], balancer: Balancer, optimizer: optax.GradientTransformation, seed: int
) -> Callable[[TrainState, Arrays, Batch], tuple[TrainState, Metrics]]:
    """The step over all local devices.

    Losses, label counts, batch statistics and gradients are reduced over the axis "devices", so that many devices compute what one
    would with the whole batch.

    Returns:
      a function (state, frozen, batch) -> (state, metrics); every leaf has a leading axis of devices, and the state is donated.
    """

    def loss_of(trained: Arrays, state: TrainState, frozen: Arrays, batch: Batch) -> tuple[jax.Array, tuple[Arrays, Metrics]]:
        model = structure.build(frozen, state.statistics, model_part(trained))
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), state.step), jax.lax.axis_index(AXIS))
        logits = model(normalize_images(batch["image"]), Training(key, AXIS))
        counts, losses, correct = {}, {}, {}
        for task in tasks:
            loss, count = masked_cross_entropy(logits[task], batch["labels"][task])
            loss, counts[task], right = jax.lax.psum((loss, count, masked_correct(logits[task], batch["labels"][task])), AXIS)
            losses[task] = loss / jnp.maximum(counts[task], 1)
            correct[task] = right / jnp.maximum(counts[task], 1)
        present = {task: (counts[task] > 0).astype(jnp.float32) for task in tasks}
        parameters = balance_part(trained)
        total = balancer.total(losses, present, parameters, state.balance)
        arrays = arrays_of(model)
        metrics = {
            "loss": total,
            "losses": losses,
            "present": present,
            "accuracy": correct,
            "count": counts,
            "weights": balancer.weights(parameters, state.balance, tasks),
        }
        return total, ({name: arrays[name] for name in state.statistics}, metrics)

    def step(state: TrainState, frozen: Arrays, batch: Batch) -> tuple[TrainState, Metrics]:
        gradients, (statistics, metrics) = jax.grad(loss_of, has_aux=True)(state.trained, state, frozen, batch)
        # every device holds the whole batch's loss, so the mean over devices is the gradient of that one loss
        gradients = jax.lax.pmean(gradients, AXIS)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.trained)
        updates = jax.tree.map(lambda u: u * state.scale, updates)
        new = TrainState(
            step=state.step + 1,
            trained=optax.apply_updates(state.trained, updates),
            statistics=statistics,
            optimizer=optimizer_state,
            balance=balancer.after_step(metrics["losses"], metrics["present"], state.balance),
            scale=state.scale,
        )
        return new, metrics | {"gradient_norm": optax.global_norm(gradients)}

    return jax.pmap(step, axis_name=AXIS, donate_argnums=(0,))


def make_predict(structure: Structure) -> Callable[[Arrays, jax.Array], tuple[dict[str, jax.Array], jax.Array]]:
    """Evaluation over all local devices: (arrays by name, images uint8 [devices, B, H, W, 3]) -> (logits of each task, features)."""

    def predict(arrays: Arrays, images: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        model = structure.build(arrays)
        features = model.features(normalize_images(images))
        return model.classify(features), features

    return jax.pmap(predict, axis_name=AXIS)


def model_part(trained: Arrays) -> Arrays:
    """The model's own parameters among those that train."""
    return {name: leaf for name, leaf in trained.items() if not name.startswith(BALANCE)}


def balance_part(trained: Arrays) -> Arrays:
    """The loss balancer's parameters among those that train, by task."""
    return {name.removeprefix(BALANCE): leaf for name, leaf in trained.items() if name.startswith(BALANCE)}


def replicate(tree: Any) -> Any:
    """Every leaf with a leading axis of local devices, one copy on each."""
    devices = jax.local_devices()
    mesh = jax.sharding.Mesh(devices, (AXIS,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))

    def copy(leaf: Any) -> jax.Array:
        shards = [jax.device_put(np.asarray(leaf)[None], device) for device in devices]
        return jax.make_array_from_single_device_arrays((len(devices), *np.shape(leaf)), sharding, shards)

    return jax.tree.map(copy, tree)


def unreplicate(tree: Any) -> Any:
    """The first local device's copy of every leaf, on the host."""
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0))[0, ...], tree)


def shard(batch: Any) -> Any:
    """Splits the leading axis of every array over the local devices: [B, ...] -> [devices, B / devices, ...]."""
    count = jax.local_device_count()
    return jax.tree.map(lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:]), batch)
