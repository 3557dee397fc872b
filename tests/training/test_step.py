import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxface.adapters import methods
from jaxface.adapters.adapt import adapt_with_groups
from jaxface.adapters.options import AdapterOptions
from jaxface.devices import replicate, shard, unreplicate
from jaxface.models.encoder import normalize_images
from jaxface.models.heads import Classifier
from jaxface.objectives.balancing import get_balancer
from jaxface.runs.config import OptimizerOptions
from jaxface.runs.parts import take_apart
from jaxface.training.optimizer import make_optimizer
from jaxface.training.step import make_step, start_state
from tiny_encoder import TINY, tiny_encoder

TASKS = ("age", "gender")
BATCH = 3


def make(method, *, dropout=0.0, adapter_dropout=0.0, rates=1e-3, balancing="uw", batch_norm=True, optimizer=None, **options):
    """A step on the tiny encoder, its state and its frozen arrays."""
    adapters = AdapterOptions(rank=4, num_tasks=2, dropout=adapter_dropout)
    encoder, groups = adapt_with_groups(tiny_encoder(), method, adapters, nnx.Rngs(0))
    parts = take_apart(Classifier(encoder, {"age": 9, "gender": 2}, dropout=dropout, batch_norm=batch_norm, rngs=nnx.Rngs(1)), groups)
    balancer = get_balancer(balancing)
    optimizer = optimizer or make_optimizer(OptimizerOptions(backbone=rates, pool=rates, head=rates), parts.groups, 100)
    state = start_state(parts.trained, parts.statistics, TASKS, balancer, optimizer, options.get("average", 0.0))
    return make_step(parts.structure, TASKS, balancer, optimizer, **options), replicate(state), replicate(parts.frozen)


def random_batch(size=BATCH, seed=0):
    """Images and labels, most genders missing."""
    rng = np.random.default_rng(seed)
    labels = {"age": rng.integers(-1, 9, size), "gender": np.where(np.arange(size) < 2, rng.integers(0, 2, size), -1)}
    return {"image": rng.integers(0, 256, (size, 16, 16, 3), dtype=np.uint8), "labels": labels}


@cache
def lowered(method):
    """The step of a method, lowered for `random_batch()`."""
    step, state, frozen = make(method)
    return step.lower(state, frozen, shard(random_batch())), state, frozen


def dense_gradients(method):
    """Matrix products of the lowered step that contract over all tokens and have the shape of a block's kernel."""
    text = lowered(method)[0].as_text()
    tokens = BATCH * (TINY.grid**2 + 1)
    d, m = TINY.width, TINY.mlp_width
    kernels = {frozenset(shape) for shape in ((d, 3 * d), (d, d), (d, m))}
    found = []
    for left, right, result in re.findall(r"dot_general.*?: \(tensor<(\S+?)xf32>, tensor<(\S+?)xf32>\) -> tensor<(\S+?)xf32>", text):
        shape = [int(n) for n in result.split("x")]
        sizes = {int(n) for side in (left, right) for n in side.split("x")}
        contracts_tokens = tokens in sizes or {BATCH, TINY.grid**2 + 1} <= sizes
        if len(shape) == 2 and frozenset(shape) in kernels and contracts_tokens and tokens not in shape:
            found.append(result)
    assert "dot_general" in text
    return found


@pytest.mark.parametrize("method", ["lora", "dora", "lp", "mtlora"])
def test_no_matrix_product_forms_a_dense_gradient_of_a_frozen_kernel(method):
    assert dense_gradients(method) == []


def test_the_count_of_dense_gradients_finds_all_four_of_a_block_that_trains_fully():
    assert len(dense_gradients("full")) >= 4


@pytest.mark.parametrize("method", ["lp", "dora", "mtlora", "full"])
def test_training_lowers_the_loss_of_a_batch_and_leaves_frozen_arrays_alone(method):
    program, state, frozen = lowered(method)
    step, batch = program.compile(), shard(random_batch())
    before = jax.tree.map(np.asarray, frozen)
    losses = []
    for _ in range(12):
        state, metrics = step(state, frozen, batch)
        losses.append(float(metrics["loss"][0]))
    assert losses[-1] < losses[0] - 0.1
    assert all(np.array_equal(before[name], frozen[name]) for name in frozen)
    assert int(unreplicate(state).step) == 12


def test_losses_and_gradients_promote_no_dtype_unasked():
    step, state, frozen = make("mtlora", dropout=0.1, adapter_dropout=0.1, balancing="gradnorm", optimizer=optax.sgd(1e-3), accumulate=2)
    with jax.numpy_dtype_promotion("strict"):
        step.lower(state, frozen, shard(random_batch(4)))


def test_a_method_registered_from_outside_trains_what_it_names():
    with methods.METHODS.temporarily():

        @methods.register_method("bitfit")
        def bitfit(encoder, options, rngs):
            return [methods.Group(r"\.bias$", rate="backbone")]

        step, state, frozen = make("bitfit", rates=1e-2)
    before = unreplicate(state).trained
    after = unreplicate(step(state, frozen, shard(random_batch()))[0]).trained
    assert {name for name in after if not name.startswith(("heads.", "balance."))} <= {name for name in after if name.endswith(".bias")}
    assert any(name.startswith("encoder.") and not np.array_equal(before[name], after[name]) for name in after)


def test_pixels_are_normalised_to_minus_one_to_one():
    np.testing.assert_allclose(normalize_images(jnp.array([0, 255], jnp.uint8)), [-1, 1])


@pytest.mark.parametrize("balancing", ["uw", "gradnorm"])
def test_pieces_of_a_batch_give_the_step_of_the_whole_one_however_the_labels_fall(balancing):
    batch = random_batch(4)  # both genders that are known fall into the first of two pieces
    ends = []
    for pieces in (1, 2):
        step, state, frozen = make("lp", balancing=balancing, accumulate=pieces, batch_norm=False)
        for _ in range(4):
            state, metrics = step(state, frozen, shard(batch))
        ends.append((unreplicate(state), unreplicate(metrics)))
    (whole, metrics), (pieces, piece_metrics) = ends
    for name, leaf in whole.trained.items():
        np.testing.assert_allclose(pieces.trained[name], leaf, atol=2e-5, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=2e-4), metrics, piece_metrics)


def step_on_features():
    """A step, its state and its frozen arrays, and a batch of four features."""
    features = np.random.default_rng(0).normal(size=(4, TINY.output)).astype(np.float32)
    return *make("lp", balancing="ema", average=0.9), {"features": features, "labels": random_batch(4)["labels"]}


def test_accuracy_is_the_share_of_the_labelled_images_that_are_right():
    step, state, frozen, batch = step_on_features()
    state, shares = unreplicate(state), []
    for gender in (0, 1):  # each image is right for one of the two
        labels = batch["labels"] | {"gender": np.where(np.arange(4) == 3, -1, gender)}
        shares.append(float(step(replicate(state), frozen, shard(batch | {"labels": labels}))[1]["accuracy"]["gender"][0]))
    assert sum(shares) == pytest.approx(1)


def test_the_factor_that_plateaus_lower_shortens_every_step():
    step, state, frozen, batch = step_on_features()
    start, ends = unreplicate(state), {}
    for scale in (1.0, 0.25):
        state, _ = step(replicate(start._replace(scale=np.float32(scale))), frozen, shard(batch))
        ends[scale] = unreplicate(state).trained
    for name, before in start.trained.items():
        np.testing.assert_allclose(ends[0.25][name] - before, 0.25 * (ends[1.0][name] - before), rtol=1e-3, atol=1e-7)


def test_a_step_that_is_not_finite_changes_nothing_but_its_counters():
    step, state, frozen, good = step_on_features()
    bad = good | {"features": np.where(np.arange(4)[:, None] == 2, np.nan, good["features"]).astype(np.float32)}
    counts = []
    for batch in (good, bad, bad, good):
        before = unreplicate(state)
        state, metrics = step(state, frozen, shard(batch))
        after = unreplicate(state)
        changed = any(not np.array_equal(after.trained[name], before.trained[name]) for name in before.trained)
        kept = jax.tree.map(np.array_equal, after._replace(step=0, skipped=0, bad=0), before._replace(step=0, skipped=0, bad=0))
        assert changed == (batch is good)
        assert all(jax.tree.leaves(kept)) == (batch is bad)
        counts.append((int(after.step), int(metrics["skipped"][0]), int(metrics["bad"][0])))
    assert counts == [(1, 0, 0), (2, 1, 1), (3, 2, 2), (4, 2, 0)]


def test_averaged_parameters_and_batch_statistics_follow_what_they_average():
    step, state, frozen = make("lp", average=0.9)
    expected = {name: np.asarray(leaf) for name, leaf in {**unreplicate(state).trained, **unreplicate(state).statistics}.items()}
    assert any(name.endswith("variance") for name in expected)
    for _ in range(3):
        state, _ = step(state, frozen, shard(random_batch()))
        for name, leaf in {**unreplicate(state).trained, **unreplicate(state).statistics}.items():
            expected[name] = 0.9 * expected[name] + 0.1 * leaf
    assert unreplicate(state).average.keys() == expected.keys()
    for name, leaf in unreplicate(state).average.items():
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-5, atol=1e-7)


def losses_of_copies(pieces):
    """The losses of two steps that change nothing, over as many copies of four rows as there are pieces, with dropout: [2, tasks]."""
    rng = np.random.default_rng(0)
    rows = {"features": rng.normal(size=(4, TINY.output)).astype(np.float32), "labels": {"age": np.arange(4), "gender": np.arange(4) % 2}}
    batch = shard(jax.tree.map(lambda x: np.concatenate([x] * pieces), rows))
    step, state, frozen = make("lp", dropout=0.5, rates=1e-30, batch_norm=False, accumulate=pieces)
    losses = []
    for _ in range(2):
        state, metrics = step(state, frozen, batch)
        losses.append([float(metrics["losses"][task][0]) for task in TASKS])
    return np.array(losses)


def test_every_piece_and_every_step_drops_out_values_of_its_own():
    two, four = losses_of_copies(2), losses_of_copies(4)
    assert np.abs(two - four).min() > 1e-3  # the same mean, if all copies had one mask
    assert np.abs(two[0] - two[1]).min() > 1e-3


def test_a_skipped_step_counts_as_no_update_whose_rate_is_logged():
    step, state, frozen = make("lp")
    batch = random_batch()
    broken = {"features": np.full((BATCH, TINY.output), np.nan, np.float32), "labels": batch["labels"]}
    good = {"features": np.ones((BATCH, TINY.output), np.float32), "labels": batch["labels"]}
    told = []
    for one in (good, broken, good):
        state, metrics = step(state, frozen, shard(one))
        told.append((int(unreplicate(metrics["updates"])), int(unreplicate(metrics["skipped"]))))
    assert told == [(0, 0), (1, 1), (1, 1)]  # updates before the step, steps skipped up to it
    counts = {int(leaf[0]) for leaf in jax.tree.leaves(state.optimizer) if leaf.dtype == jnp.int32}
    assert counts == {2}
