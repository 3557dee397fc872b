"""Losses, balancers and schedules against independent references."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxface.adapters.methods import Group
from jaxface.errors import UserError
from jaxface.training.balancing import MovingAverage, Uncertainty, get_balancer
from jaxface.training.losses import get_loss, masked_correct, masked_sum
from jaxface.training.optimizer import OptimizerOptions, Plateau, group_parameters, make_optimizer


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(st.integers(-1, 4), min_size=6, max_size=6))
def test_masked_cross_entropy_equals_torch_with_an_ignored_index(labels):
    logits = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    total = masked_sum(get_loss("cross_entropy"), jnp.asarray(logits), jnp.asarray(labels))
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels), ignore_index=-1, reduction="sum")
    assert float(total) == pytest.approx(float(expected), rel=1e-5, abs=1e-6)
    right = sum(label >= 0 and row.argmax() == label for row, label in zip(logits, labels, strict=True))
    assert int(masked_correct(jnp.asarray(logits), jnp.asarray(labels))) == right


def test_uncertainty_weighting_has_the_hand_derived_gradient():
    s, losses = {"a": jnp.float32(0.4), "b": jnp.float32(-0.3)}, {"a": jnp.float32(2.0), "b": jnp.float32(0.5)}
    present = dict.fromkeys(s, jnp.float32(1))
    total, g = jax.value_and_grad(lambda s: Uncertainty().total(losses, present, s, {}))(s)
    assert float(total) == pytest.approx(math.exp(-0.4) * 2 + 0.2 + math.exp(0.3) * 0.5 - 0.15, rel=1e-6)
    for task in s:
        assert float(g[task]) == pytest.approx(0.5 - math.exp(-float(s[task])) * float(losses[task]), rel=1e-5)


def test_a_task_without_a_label_in_the_batch_adds_nothing_and_moves_nothing():
    s = {"a": jnp.float32(0.4), "b": jnp.float32(-0.3)}
    losses, present = {"a": jnp.float32(2.0), "b": jnp.float32(0.0)}, {"a": jnp.float32(1), "b": jnp.float32(0)}
    assert float(jax.grad(lambda s: Uncertainty().total(losses, present, s, {}))(s)["b"]) == 0


def test_moving_average_weights_change_only_at_the_start_of_an_epoch():
    balancer, tasks = MovingAverage(), ("a", "b")
    state, average = balancer.state(tasks), None
    for loss in (4.0, 2.0, 1.0):
        average = loss if average is None else 0.95 * loss + 0.05 * average
        state = balancer.after_step({"a": jnp.float32(loss), "b": jnp.float32(0)}, {"a": jnp.float32(1), "b": jnp.float32(0)}, state, {})
        assert float(balancer.weights({}, state, tasks)["a"]) == 1
    state = balancer.after_epoch(state)
    weights = balancer.weights({}, state, tasks)
    assert float(weights["a"]) == pytest.approx(1 / average, rel=1e-5)
    assert float(weights["b"]) == 1  # never seen


def test_unknown_balancers_are_named():
    with pytest.raises(UserError, match=r"no loss balancer 'x'; known: fixed, uw, ema, dwa, gradnorm"):
        get_balancer("x")


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.floats(0.1, 2.0), min_size=5, max_size=40), st.integers(0, 5))
def test_the_plateau_rule_is_torchs(losses, patience):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=patience)
    plateau = Plateau(0.1, patience)
    for loss in losses:
        reference.step(loss)
        assert plateau.update(loss) == pytest.approx(optimizer.param_groups[0]["lr"])


def test_adamw_with_groups_steps_as_torchs_adamw_with_parameter_groups():
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=(3, 2)).astype(np.float32) for name in ("x.kernel.a", "x.kernel.b", "heads.age.out.kernel")}
    groups = {
        "x.kernel.a": Group(r"a$", rate="backbone"),
        "x.kernel.b": Group(r"b$", rate="backbone", plus=True),
        "heads.age.out.kernel": Group(r"^heads", rate="head"),
    }
    rates = {"x.kernel.a": 1e-2, "x.kernel.b": 6e-2, "heads.age.out.kernel": 3e-2}
    options = OptimizerOptions(backbone=1e-2, head=3e-2, weight_decay=0.1)
    ours = {name: jnp.asarray(value) for name, value in values.items()}
    optimizer = make_optimizer(options, groups, 10)
    state = optimizer.init(ours)
    theirs = {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}
    reference = torch.optim.AdamW([{"params": [p], "lr": rates[name]} for name, p in theirs.items()], weight_decay=0.1)
    for _ in range(5):
        gradients = {name: rng.normal(size=(3, 2)).astype(np.float32) for name in values}
        updates, state = optimizer.update({name: jnp.asarray(g) for name, g in gradients.items()}, state, ours)
        ours = {name: ours[name] + updates[name] for name in ours}
        for name, p in theirs.items():
            p.grad = torch.tensor(gradients[name])
        reference.step()
    for name, p in theirs.items():
        np.testing.assert_allclose(ours[name], p.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_a_group_that_matches_no_parameter_is_named():
    with pytest.raises(UserError, match="no parameter matches 'typo'"):
        group_parameters(["x.kernel.a"], [Group("a$", rate="head"), Group("typo", rate="head")])
