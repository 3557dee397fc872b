"""Losses, balancers and schedules against independent references."""

import math
from importlib import import_module

import coral_pytorch.dataset
import coral_pytorch.layers
import coral_pytorch.losses
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxface.adapters.adapt import adapt_with_groups
from jaxface.adapters.methods import Group, group_parameters
from jaxface.adapters.options import make_options
from jaxface.adapters.peft_format import timm_modules
from jaxface.data.tasks import AGE, AGE_STARTS, AGE_YEARS, Task
from jaxface.errors import UserError
from jaxface.models.encoder import random_encoder
from jaxface.models.heads import Head
from jaxface.models.tree import flatten
from jaxface.objectives.balancing import MovingAverage, Uncertainty, get_balancer
from jaxface.objectives.losses import get_loss, masked_sum
from jaxface.originals.reference import build_original, import_torch
from jaxface.runs.config import Config, OptimizerOptions
from jaxface.runs.inference import with_coarse_logits
from jaxface.training.optimizer import EarlyStop, Plateau, make_optimizer
from jaxface.training.progress import Progress
from small_models import KINDS, random_tensors

torch, peft = import_torch("peft")


def numbers(**values):
    return {name: jnp.float32(value) for name, value in values.items()}


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(st.integers(-1, 4), min_size=6, max_size=6))
def test_masked_cross_entropy_equals_torch_with_an_ignored_index(labels):
    logits = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    total = masked_sum(get_loss("cross_entropy"), jnp.asarray(logits), jnp.asarray(labels))
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels), ignore_index=-1, reduction="sum")
    assert float(total) == pytest.approx(float(expected), rel=1e-5, abs=1e-6)
    right = sum(label >= 0 and row.argmax() == label for row, label in zip(logits, labels, strict=True))
    assert int(AGE.of.right(AGE, jnp.asarray(logits), jnp.asarray(labels)).sum()) == right


def test_uncertainty_weighting_has_the_hand_derived_gradient():
    s, losses = {"a": jnp.float32(0.4), "b": jnp.float32(-0.3)}, {"a": jnp.float32(2.0), "b": jnp.float32(0.5)}
    present = dict.fromkeys(s, jnp.float32(1))
    total, g = jax.value_and_grad(lambda s: Uncertainty().total(losses, present, s, {}))(s)
    assert float(total) == pytest.approx(math.exp(-0.4) * 2 + 0.2 + math.exp(0.3) * 0.5 - 0.15, rel=1e-6)
    for task in s:
        assert float(g[task]) == pytest.approx(0.5 - math.exp(-float(s[task])) * float(losses[task]), rel=1e-5)


def test_a_task_without_a_label_in_the_batch_adds_its_half_log_variance_or_where_that_is_wanted_nothing():
    s = {"a": jnp.float32(0.4), "b": jnp.float32(-0.3)}
    losses, present = {"a": jnp.float32(2.0), "b": jnp.float32(0.0)}, {"a": jnp.float32(1), "b": jnp.float32(0)}
    gradients = {name: jax.grad(lambda s, name=name: get_balancer(name).total(losses, present, s, {}))(s) for name in ("uw", "uw_present")}
    assert float(gradients["uw"]["b"]) == 0.5  # the formula's s / 2 (thesis, section 3.7.3)
    assert float(gradients["uw_present"]["b"]) == 0
    assert float(gradients["uw"]["a"]) == float(gradients["uw_present"]["a"]) == pytest.approx(0.5 - 2 * math.exp(-0.4))


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
    with pytest.raises(UserError, match=r"no loss balancer 'x'; known: fixed, uw, uw_present, ema, dwa, gradnorm"):
        get_balancer("x")


NEAR = st.sampled_from([1.0, 0.99995, 0.9999, 0.99985, 0.99975])  # a step of one is too small to count, one of two is not
LOSSES = st.lists(st.floats(0.1, 2.0), min_size=5, max_size=40) | st.lists(NEAR, min_size=5, max_size=40)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(LOSSES, st.integers(0, 5))
@example([1.0] * 20, 0)  # down to where lowering changes nothing that counts
@example([1.0, 0.99995, 0.9999], 0)
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


@pytest.mark.parametrize("decay_vectors", [False, True])
def test_weight_decay_leaves_vectors_alone_unless_told_otherwise(decay_vectors):
    options = OptimizerOptions(head=1e-2, weight_decay=0.5, decay_vectors=decay_vectors)
    ours = {"matrix": jnp.ones((2, 2)), "vector": jnp.ones(2), "scalar": jnp.ones(())}
    optimizer = make_optimizer(options, {}, 10)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, ours), optimizer.init(ours), ours)
    lost = {name: float(-leaf.sum() / leaf.size) for name, leaf in updates.items()}
    assert lost == pytest.approx({"matrix": 5e-3, "vector": 5e-3 * decay_vectors, "scalar": 5e-3 * decay_vectors})


def test_a_group_that_matches_no_parameter_is_named():
    with pytest.raises(UserError, match="no parameter matches 'typo'"):
        group_parameters(["x.kernel.a"], [Group("a$", rate="head"), Group("typo", rate="head")])


def test_coral_equals_its_authors_loss_layer_and_answer():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(8, 5)).astype(np.float32), rng.integers(0, 7, 8)
    layer = coral_pytorch.layers.CoralLayer(5, 7)
    head = Head(5, 7, deep=False, batch_norm=False, dropout=0, output="ranks", rngs=nnx.Rngs(0))
    np.testing.assert_allclose(head.out.bias[...], layer.coral_bias.detach(), rtol=1e-6)  # both start from falling thresholds
    head.out.kernel = nnx.Param(jnp.asarray(layer.coral_weights.weight.detach().numpy().T))
    ranks = layer(torch.tensor(features))
    levels = coral_pytorch.dataset.levels_from_labelbatch(torch.tensor(labels), 7)
    expected = coral_pytorch.losses.coral_loss(ranks, levels, reduction=None).detach().numpy()
    np.testing.assert_allclose(get_loss("coral").values(head.out(features), jnp.asarray(labels)), expected, rtol=1e-5)
    answers = coral_pytorch.dataset.proba_to_label(torch.sigmoid(ranks)).numpy()
    assert np.array_equal(np.argmax(head(jnp.asarray(features)), -1), answers)
    p = jax.nn.softmax(head(jnp.asarray(features)))
    assert np.all(p > 0)


def test_soft_labels_are_a_bell_around_the_class():
    logits = np.random.default_rng(0).normal(size=(3, 9)).astype(np.float32)
    labels = [0, 4, 8]
    target = [[math.exp(-((k - label) ** 2) / 2) for k in range(9)] for label in labels]
    target = torch.tensor(target) / torch.tensor(target).sum(1, keepdim=True)
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits), target, reduction="none")
    np.testing.assert_allclose(get_loss("soft").values(jnp.asarray(logits), jnp.asarray(labels)), expected, rtol=1e-5)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 100), st.integers(0, 2**30))
def test_single_years_map_to_the_group_of_the_likeliest_year(year, seed):
    logits = np.random.default_rng(seed).normal(size=(1, 101)).astype(np.float32)
    logits[0, year] = 4.0 + logits.max()
    grouped = with_coarse_logits({AGE_YEARS.name: jnp.asarray(logits)})[AGE.name]
    assert int(jnp.argmax(grouped)) == max(k for k, start in enumerate(AGE_STARTS) if year >= start)
    p = np.exp(logits[0]) / np.exp(logits[0]).sum()
    expected = [p[a:b].sum() for a, b in zip(AGE_STARTS, (*AGE_STARTS[1:], 101), strict=True)]
    if int(np.argmax(expected)) == int(jnp.argmax(grouped)):
        np.testing.assert_allclose(jnp.exp(grouped[0]), expected, atol=2e-3)


def test_dynamic_averaging_follows_its_paper():
    tasks, balancer = ("a", "b"), get_balancer("dwa")
    state, means = balancer.state(tasks), {task: [] for task in tasks}
    rng = np.random.default_rng(0)
    for epoch in range(4):
        weights = balancer.weights({}, state, tasks)
        rate = {task: means[task][-1] / means[task][-2] if epoch >= 2 else 1.0 for task in tasks}
        whole = sum(math.exp(rate[task] / 2) for task in tasks)
        for task in tasks:
            assert float(weights[task]) == pytest.approx(2 * math.exp(rate[task] / 2) / whole, rel=1e-5)
        losses = rng.uniform(0.5, 2, (2 + epoch, 2))
        for a, b in losses:
            state = balancer.after_step(numbers(a=a, b=b), numbers(a=1, b=1), state, {})
        state = balancer.after_epoch(state)
        for task, values in zip(tasks, losses.T, strict=True):
            means[task].append(float(values.mean()))


def test_gradnorm_takes_the_gradient_step_of_its_papers_loss():
    tasks, balancer = ("a", "b", "c"), get_balancer("gradnorm")
    state, weight, first = balancer.state(tasks), torch.ones(3), None
    rng = np.random.default_rng(1)
    for _ in range(5):
        losses, norms = rng.uniform(0.5, 2, 3).astype(np.float32), rng.uniform(0.1, 3, 3).astype(np.float32)
        state = balancer.after_step(
            numbers(**dict(zip(tasks, losses, strict=True))), numbers(a=1, b=1, c=1), state, numbers(**dict(zip(tasks, norms, strict=True)))
        )
        first = losses if first is None else first
        weight = weight.detach().requires_grad_()
        size = weight * torch.tensor(norms)
        mean = size.mean().detach()
        rate = torch.tensor(losses / first)
        target = (mean * (rate / rate.mean()) ** balancer.alpha).detach()
        (size - target).abs().sum().backward()
        with torch.no_grad():
            weight = weight - balancer.rate * weight.grad / mean
            weight = 3 * weight / weight.sum()
        got = balancer.weights({}, state, tasks)
        np.testing.assert_allclose([float(got[task]) for task in tasks], weight.numpy(), rtol=1e-5)


def test_gradnorm_moves_nothing_in_a_batch_of_one_tasks_labels():
    balancer, tasks = get_balancer("gradnorm"), ("a", "b", "c")
    start = balancer.after_step(numbers(a=1, b=2, c=3), numbers(a=1, b=1, c=1), balancer.state(tasks), numbers(a=3, b=0.5, c=1))
    after = balancer.after_step(numbers(a=0.5, b=0, c=0), numbers(a=1, b=0, c=0), start, numbers(a=3, b=0, c=0))
    before, weights = (balancer.weights({}, state, tasks) for state in (start, after))
    assert [float(weights[task]) for task in tasks] == pytest.approx([float(before[task]) for task in tasks])
    assert float(before["a"]) != pytest.approx(float(before["b"]), abs=1e-2)


@pytest.mark.parametrize(
    ("by_loss", "kept", "over"),
    [(True, [0, 1, 3], 5), (False, [0, 1, 3], 6)],  # accuracy improves at epoch 3, the loss last at epoch 2
)
def test_one_task_stops_by_its_loss_and_several_by_their_accuracy_and_the_best_accuracy_is_kept(by_loss, kept, over):
    losses, accuracies = [3.0, 2.0, 1.0, 1.5, 1.4, 1.3, 1.2], [0.1, 0.3, 0.2, 0.4, 0.4, 0.3, 0.2]
    early, best, ended = EarlyStop(3, by_loss), [], None
    for epoch, values in enumerate(zip(losses, accuracies, strict=True)):
        if early.update(*values):
            best.append(epoch)
        if early.is_over and ended is None:
            ended = epoch
    assert (best, ended) == (kept, over)


def test_a_run_of_one_task_watches_its_loss_and_one_of_several_their_accuracy():
    watched = [Progress.start(Config(tasks=tasks)).early.by_loss for tasks in (("age",), ("age", "gender"))]
    assert watched == [True, False]


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_the_rate_of_every_update_is_that_of_torchs_schedulers_as_applied_and_as_logged(cosine, warmup):
    options = OptimizerOptions(cosine=cosine, warmup_steps=warmup, head=0.5, weight_decay=0.0)
    reference = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    rise = torch.optim.lr_scheduler.LinearLR(reference, start_factor=1 / (warmup + 1), total_iters=warmup)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=12 - warmup)
    rest = fall if cosine else torch.optim.lr_scheduler.ConstantLR(reference, factor=1.0)
    scheduler = torch.optim.lr_scheduler.SequentialLR(reference, [rise, rest], [warmup]) if warmup else rest
    optimizer = make_optimizer(options, {}, 12)
    parameters = {"heads.x": jnp.zeros(1)}
    state = optimizer.init(parameters)
    for update in range(12):
        # under a gradient that never changes, Adam's step is its rate
        moved, state = optimizer.update({"heads.x": jnp.ones(1)}, state, parameters)
        rate = reference.param_groups[0]["lr"]
        assert rate > 0
        assert -float(moved["heads.x"][0]) == pytest.approx(rate, rel=1e-4)
        assert 0.5 * options.factor_at(update, 12) == pytest.approx(rate, rel=1e-6)
        reference.step()
        scheduler.step()


def test_a_cosine_needs_steps_behind_its_warm_up_and_has_no_plateaus():
    with pytest.raises(UserError, match=r"warmup_steps 4: expected fewer than the run's 4 steps"):
        OptimizerOptions(cosine=True, warmup_steps=4).schedule(4)
    with pytest.raises(UserError, match=r"optimizer\.plateau_factor 0\.5: a cosine has no plateaus"):
        OptimizerOptions(cosine=True, plateau_factor=0.5)


def test_gradients_are_clipped_as_torch_does():
    gradients = {"a": np.array([3.0, 0.0], np.float32), "b": np.array([[4.0, 12.0]], np.float32)}
    options = OptimizerOptions(head=1.0, clip_norm=1.0, weight_decay=0.0)
    ours = {name: jnp.zeros_like(g) for name, g in gradients.items()}
    theirs = {name: torch.zeros(g.shape, requires_grad=True) for name, g in gradients.items()}
    optimizer, reference = make_optimizer(options, {}, 10), torch.optim.AdamW(theirs.values(), lr=1.0, weight_decay=0.0)
    state = optimizer.init(ours)
    for scale in (1.0, 0.01, 5.0):  # Adam forgets a common scale of all gradients, but not that one of them was cut
        updates, state = optimizer.update({name: jnp.asarray(scale * g) for name, g in gradients.items()}, state, ours)
        ours = {name: ours[name] + updates[name] for name in ours}
        for name, p in theirs.items():
            p.grad = torch.tensor(scale * gradients[name])
        torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        reference.step()
    for name, p in theirs.items():
        np.testing.assert_allclose(ours[name], p.detach().numpy(), rtol=1e-4)


def test_loraplus_puts_every_matrix_into_the_group_that_peft_puts_it_into():
    towers = KINDS["core"]
    encoder, groups = adapt_with_groups(random_encoder(towers.vision, 0), "lora", make_options({"rank": 4}), nnx.Rngs(0))
    named = group_parameters(flatten(encoder)[0], [group for group in groups if group.rate != "head"])
    options = OptimizerOptions(backbone=1e-5, pool=1e-5)
    ours = {}
    linears = {id(linear): names for linear, names in timm_modules(encoder)}
    for path, module in nnx.iter_modules(encoder):
        if id(module) in linears:
            for kind, theirs in (("a", "lora_A"), ("b", "lora_B")):
                group = named.get(".".join(map(str, (*path, "kernel", kind))))
                if group is not None:
                    ours |= {f"{name}.{theirs}": options.rate(group) for name in linears[id(module)]}
    blocks = r".*(blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))|attn_pool\.(proj|mlp\.(fc1|fc2)))"
    original = build_original("timm", towers, random_tensors(towers)).modules[0]
    model = peft.get_peft_model(original, peft.LoraConfig(r=4, target_modules=blocks))
    optimizer = import_module("peft.optimizers").create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=1e-5, loraplus_lr_ratio=options.plus_ratio
    )
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    theirs = {
        name.removeprefix("base_model.model.").removesuffix(".default.weight"): rates[id(p)]
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    assert ours == pytest.approx(theirs)
    assert len(ours) == 2 * (4 * towers.vision.depth + 3)


def gradients(name, outputs, targets):
    """Of the summed loss by the head's outputs."""
    of = jax.jit(jax.grad(lambda x, targets: masked_sum(get_loss(name), x, targets, targets=lambda labels: labels)))
    return np.asarray(of(outputs, targets))


@pytest.mark.parametrize(("name", "reference"), [("huber", "smooth_l1_loss"), ("squared", "mse_loss"), ("absolute", "l1_loss")])
def test_losses_of_numbers_and_their_gradients_equal_torch(name, reference):
    outputs, numbers_ = np.random.default_rng(0).normal(0, 2, (2, 7, 1)).astype(np.float32)
    x = torch.tensor(outputs, requires_grad=True)
    total = getattr(torch.nn.functional, reference)(x, torch.tensor(numbers_), reduction="sum")
    total.backward()
    np.testing.assert_allclose(gradients(name, outputs, numbers_[:, 0]), x.grad.numpy(), atol=1e-6)
    assert float(get_loss(name).values(outputs, numbers_[:, 0]).sum()) == pytest.approx(float(total.detach()), rel=1e-5)


def test_the_loss_of_several_labels_and_its_gradient_equal_torch_on_the_labels_that_are_known():
    logits = np.random.default_rng(0).normal(0, 3, (5, 4)).astype(np.float32)
    labels = np.array([[0, 1, 1, 0], [1, -1, 0, -1], [-1, -1, -1, -1], [1, 1, 1, 1], [0, 0, -1, 0]], np.int32)
    x = torch.tensor(logits, requires_grad=True)
    per_label = torch.nn.functional.binary_cross_entropy_with_logits(x, torch.tensor(labels).clamp(0).float(), reduction="none")
    there = torch.tensor(labels) >= 0
    total = ((per_label * there).sum(1) / there.sum(1).clamp(1)).sum()
    total.backward()
    np.testing.assert_allclose(gradients("binary_cross_entropy", logits, labels), x.grad.numpy(), atol=1e-6)


def test_a_number_is_standardised_or_put_on_its_nearest_step_and_a_missing_one_moves_nothing():
    number = Task("w", kind="regression", center=10.0, scale=4.0, within=3.0)
    labels = jnp.array([10.0, 18.0, jnp.nan])
    loss = lambda x: masked_sum(get_loss("squared"), x, labels, targets=lambda values: number.of.targets(number, values))  # noqa: E731
    np.testing.assert_allclose(np.asarray(jax.grad(loss)(jnp.zeros((3, 1))))[:, 0], [0, -4, 0])
    assert number.of.right(number, jnp.array([[0.7], [1.0], [0.0]]), labels).tolist() == [True, False, False]
    steps = Task("w", ("0", "5", "10"), kind="regression")
    assert steps.of.targets(steps, jnp.array([2.0, 9.0, 99.0])).tolist() == [0, 2, 2]
