"""The training step: one pure function of a state and a batch, the same program on one device or many."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxface.adapters.dropout_keys import set_keys
from jaxface.data.tasks import TASKS, Task, known
from jaxface.devices import AXIS, mean_over_devices
from jaxface.kernels.normalize import at_least_float32
from jaxface.models.encoder import normalize_images
from jaxface.models.heads import Classifier, Training
from jaxface.models.tree import Structure, arrays_of
from jaxface.objectives.balancing import Balancer
from jaxface.objectives.losses import get_loss, masked_sum

BALANCE = "balance."
"""Prefix of the loss balancer's parameters among those that train."""

Arrays = dict[str, jax.Array]
Batch = dict[str, Any]
Metrics = dict[str, Any]


class TrainState(NamedTuple):
    """What a step changes.

    Attributes:
      step: number of batches seen.
      trained: parameters that train, by name, in float32; the loss balancer's under "balance.".
      statistics: running statistics of batch norms.
      optimizer: the optimizer's state.
      balance: the loss balancer's state.
      scale: factor on all learning rates, which the plateau rule lowers.
      average: the moving averages of `trained` and of `statistics`, which are those of a model of its own; empty without one.
      skipped: steps whose loss or gradient was not finite.
      bad: how many of the last steps, without a good one between, those were.
      key: the seed's random key; a step folds its number into it. Part of the state, so that runs of several seeds share one program.
    """

    step: jax.Array | np.ndarray
    trained: Arrays
    statistics: Arrays
    optimizer: Any
    balance: dict[str, Any]
    scale: jax.Array | np.ndarray
    average: Arrays
    skipped: jax.Array | np.ndarray
    bad: jax.Array | np.ndarray
    key: jax.Array


def start_state(
    trained: Arrays,
    statistics: Arrays,
    tasks: tuple[str, ...],
    balancer: Balancer,
    optimizer: optax.GradientTransformation,
    average: float = 0.0,
    seed: int = 0,
) -> TrainState:
    """The state before the first step."""
    trained = trained | {BALANCE + task: leaf for task, leaf in balancer.parameters(tasks).items()}
    zero = np.zeros((), np.int32)
    return TrainState(
        step=zero,
        trained=trained,
        statistics=statistics,
        optimizer=jax.jit(optimizer.init)(trained),  # one program
        balance=balancer.state(tasks),
        scale=np.ones((), np.float32),
        average={**trained, **statistics} if average else {},
        skipped=zero,
        bad=zero,
        key=jax.random.key_data(jax.random.key(seed)),
    )


class Rules(NamedTuple):
    """What all steps of a run have in common.

    Attributes:
      structure: the model without its arrays.
      tasks: what is predicted.
      balancer: how the tasks' losses become one.
      optimizer: what gradients become.
      losses: of each task.
      kinds: the tasks themselves, by name.
      accumulate: pieces that each device's part of the batch is cut into.
      average: the decay of the parameters' moving average, 0 for none.
    """

    structure: Structure
    tasks: tuple[str, ...]
    balancer: Balancer
    optimizer: optax.GradientTransformation
    losses: Mapping[str, Any]
    kinds: Mapping[str, Task]
    accumulate: int
    average: float


def make_step(
    structure: Structure,
    tasks: tuple[str, ...],
    balancer: Balancer,
    optimizer: optax.GradientTransformation,
    *,
    losses: Mapping[str, str] | None = None,
    kinds: Mapping[str, Task] | None = None,
    accumulate: int = 1,
    average: float = 0.0,
    mesh: jax.sharding.Mesh | None = None,
) -> Callable[[TrainState, Arrays, Batch], tuple[TrainState, Metrics]]:
    """The step over all devices.

    Losses, label counts, batch statistics and gradients are reduced over the axis "devices", so that many devices compute what one
    would with the whole batch. A step whose loss or gradient is not finite changes nothing but the counters.

    Args:
      losses: the loss of each task by its name in `LOSSES`; its kind's own where a task is not named.
      kinds: the tasks by name; the process's own if None.
      accumulate: pieces that each device's part of the batch is cut into, one after the other, to save memory. Losses and gradients are
        those of the whole batch, since each piece divides by the whole batch's number of labels; batch norm sees a piece at a time.
      average: the decay of the parameters' moving average, 0 for none.
      mesh: of one axis "devices", which need not be here: the same program for any jit; over this process's devices if None.

    Returns:
      a function (state, frozen, batch) -> (state, metrics); every leaf has a leading axis of devices, and the state is donated. A batch
      has "labels" and either "image" or, where the encoder's output is cached, "features"; with mixed images also "mixed".
    """
    own = {task: (kinds or TASKS)[task] for task in tasks}
    losses_of = {name: get_loss((losses or {}).get(name) or task.of.loss(task)) for name, task in own.items()}
    rules = Rules(structure, tasks, balancer, optimizer, losses_of, own, accumulate, average)

    def step(state: TrainState, frozen: Arrays, batch: Batch) -> tuple[TrainState, Metrics]:
        counts = {task: jax.lax.psum(jnp.sum(known(batch["labels"][task])), AXIS) for task in tasks}
        gradients, statistics, metrics = batch_gradients(rules, state, frozen, batch, counts)
        return update(rules, state, gradients, statistics, metrics | {"count": counts})

    if mesh is None:
        return jax.pmap(step, axis_name=AXIS, donate_argnums=(0,))

    def on_each(*arguments: Any) -> Any:
        return jax.tree.map(lambda x: x[None], step(*jax.tree.map(lambda x: x[0], arguments)))

    over = jax.sharding.PartitionSpec(AXIS)
    return jax.shard_map(on_each, mesh=mesh, in_specs=over, out_specs=over, check_vma=False)


def task_losses(rules: Rules, outputs: dict[str, jax.Array], piece: Batch, counts: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Each task's mean loss [] over the labels of the whole batch, from the heads' outputs [B, C] of a piece on every device.

    L_t = sum_i l_t(y_i, o_i) / n_t, over the n_t images of all devices and pieces that have a label of t.
    """
    sums = {
        name: masked_sum(rules.losses[name], outputs[name], piece["labels"][name], mixed_in(piece, name), partial(task.of.targets, task))
        for name, task in rules.kinds.items()
    }
    return {task: jax.lax.psum(value, AXIS) / jnp.maximum(counts[task], 1).astype(value.dtype) for task, value in sums.items()}


def piece_loss(
    trained: Arrays, statistics: Arrays, rules: Rules, state: TrainState, frozen: Arrays, piece: Batch, key: jax.Array, counts: Arrays
) -> tuple[jax.Array, tuple[Arrays, Metrics]]:
    """A piece's part [] of the whole batch's loss, with the batch statistics after it and the piece's metrics."""
    model = rules.structure.build(frozen, statistics, model_part(trained))
    rows = len(piece["labels"][rules.tasks[0]])
    set_keys(model.encoder, key, jax.lax.axis_index(AXIS) * rows + jnp.arange(rows))
    features = features_of(model, piece)
    outputs = model.classify(features, Training(key, AXIS))
    values = task_losses(rules, outputs, piece, counts)
    logits = {task: model.heads[task].to_logits(outputs[task]) for task in rules.tasks}
    right = {name: jnp.sum(task.of.right(task, logits[name], piece["labels"][name])) for name, task in rules.kinds.items()}
    total = rules.balancer.total(values, present_in(counts), balance_part(trained), state.balance, share=1 / rules.accumulate)
    metrics = {"loss": total, "losses": values, "correct": jax.lax.psum(right, AXIS)}
    if rules.balancer.needs_norms:

        def losses_at(features: jax.Array) -> dict[str, jax.Array]:
            model = rules.structure.build(frozen, statistics, model_part(trained))
            return task_losses(rules, model.classify(features, Training(key, AXIS)), piece, counts)

        metrics["squares"] = gradient_squares(losses_at, features)
    arrays = arrays_of(model)
    return total, ({name: arrays[name] for name in statistics}, metrics)


def gradient_squares(losses_at: Callable[[jax.Array], dict[str, jax.Array]], features: jax.Array) -> dict[str, jax.Array]:
    """||dL_t / df||^2 [] of each task's loss at the features f [B, D] of all devices (GradNorm, Chen et al. 2018, section 3.1)."""
    gradients = jax.jacrev(losses_at)(jax.lax.stop_gradient(features))
    # the transpose of a sum over devices sums the cotangents of all of them: one for each copy of the loss
    return jax.lax.psum({task: jnp.sum(jnp.square(g / jax.lax.axis_size(AXIS))) for task, g in gradients.items()}, AXIS)


def batch_gradients(
    rules: Rules, state: TrainState, frozen: Arrays, batch: Batch, counts: dict[str, jax.Array]
) -> tuple[Arrays, Arrays, Metrics]:
    """The gradient of the whole batch's loss by each trained parameter, the batch statistics after it, and its metrics.

    The batch [B, ...] of a device is seen whole or in pieces [B / accumulate, ...], one after the other.
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    gradient = jax.grad(piece_loss, has_aux=True)
    if rules.accumulate == 1:
        gradients, (statistics, metrics) = gradient(state.trained, state.statistics, rules, state, frozen, batch, key, counts)
    else:

        def one(statistics: Arrays, piece: Any) -> tuple[Arrays, tuple[Arrays, Metrics]]:
            number, piece = piece
            own = jax.random.fold_in(key, number)
            gradients, (statistics, metrics) = gradient(state.trained, statistics, rules, state, frozen, piece, own, counts)
            return statistics, (gradients, metrics)

        pieces = jax.tree.map(lambda x: x.reshape(rules.accumulate, -1, *x.shape[1:]), batch)
        statistics, (gradients, metrics) = scan_sum(one, state.statistics, (jnp.arange(rules.accumulate), pieces))
    # every device holds the whole batch's loss, so the mean over devices is the gradient of that one loss
    return mean_over_devices(gradients), statistics, metrics


def scan_sum(function: Callable[[Any, Any], tuple[Any, Any]], carry: Any, pieces: Any) -> tuple[Any, Any]:
    """As `jax.lax.scan` over pieces [P, ...], but with the sum of the results in place of all of them."""
    first = jax.tree.map(lambda x: x[0], pieces)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(function, carry, first)[1])

    def add(carry: tuple[Any, Any], piece: Any) -> tuple[tuple[Any, Any], None]:
        state, new = function(carry[0], piece)
        return (state, jax.tree.map(jnp.add, carry[1], new)), None

    return jax.lax.scan(add, (carry, zeros), pieces)[0]


def update(rules: Rules, state: TrainState, gradients: Arrays, statistics: Arrays, metrics: Metrics) -> tuple[TrainState, Metrics]:
    """The state after a step, all of it as it was but for the counters where the loss or a gradient is not finite; and the step's metrics.

    Args:
      gradients: of each trained parameter, in its shape.
      statistics: batch norms' running statistics after the step.
      metrics: of `batch_gradients`, and each task's number of labels as "count".
    """
    balancer = rules.balancer
    norms = {task: jnp.sqrt(square) for task, square in metrics.pop("squares", {}).items()}
    norm = optax.tree.norm(gradients)
    good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)

    def changed() -> dict[str, Any]:
        updates, optimizer_state = rules.optimizer.update(gradients, state.optimizer, state.trained)
        trained: Any = optax.apply_updates(state.trained, jax.tree.map(lambda u: u * state.scale, updates))
        now = {**trained, **statistics}
        return {
            "trained": trained,
            "statistics": statistics,
            "optimizer": optimizer_state,
            "balance": balancer.after_step(metrics["losses"], present_in(metrics["count"]), state.balance, norms),
            "average": {name: rules.average * old + (1 - rules.average) * now[name] for name, old in state.average.items()},
        }

    unchanged = {name: getattr(state, name) for name in ("trained", "statistics", "optimizer", "balance", "average")}
    kept = jax.lax.cond(good, changed, lambda: unchanged)
    bad = jnp.where(good, 0, state.bad + 1)
    new = state._replace(step=state.step + 1, skipped=state.skipped + (~good).astype(state.skipped.dtype), bad=bad, **kept)
    correct = metrics.pop("correct")
    metrics["accuracy"] = {task: correct[task] / jnp.maximum(metrics["count"][task], 1) for task in rules.tasks}
    metrics["updates"] = state.step - state.skipped
    metrics["weights"] = balancer.weights(balance_part(state.trained), state.balance, rules.tasks)
    return new, metrics | {"gradient_norm": norm, "skipped": new.skipped, "bad": bad}


def features_of(model: Classifier, batch: Batch) -> jax.Array:
    """The encoder's output for a batch, computed or cached: [B, D]."""
    dtype = at_least_float32(model.encoder.dtype)
    return batch["features"] if "features" in batch else model.features(normalize_images(batch["image"], dtype))


def mixed_in(batch: Batch, task: str) -> tuple[jax.Array, jax.Array] | None:
    """The share [B] of the images that has their own labels of a task, and the labels [B] of the rest, where images are mixed."""
    return (batch["mixed"]["share"], batch["mixed"]["labels"][task]) if "mixed" in batch else None


def present_in(counts: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """1 for each task that has a label in the batch, 0 for the others."""
    return {task: (count > 0).astype(jnp.float32) for task, count in counts.items()}


def model_part(trained: Arrays) -> Arrays:
    """The model's own parameters among those that train."""
    return {name: leaf for name, leaf in trained.items() if not name.startswith(BALANCE)}


def balance_part(trained: Arrays) -> Arrays:
    """The loss balancer's parameters among those that train, by task."""
    return {name.removeprefix(BALANCE): leaf for name, leaf in trained.items() if name.startswith(BALANCE)}
