"""Certificates of what comes back, and of optimizers: equal where both are, and where one has a fault, the place that has it."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxface.compare import check, check_optimizer
from jaxface.originals.certificate import certify
from jaxface.originals.optimizers import optimizer_pair
from jaxface.originals.pairs import made_pair, tower_pair
from jaxface.originals.reference import build_original, import_torch
from jaxface.weights import load_clip
from small_models import KINDS, random_ids, random_images, random_tensors
from weights_convert.checkpoint import write_checkpoint
from weights_convert.towers import Towers

torch = import_torch()[0]


class Original(torch.nn.Module):
    """Two residual branches and a head, its modules defined in another order than they are called in."""

    def __init__(self):
        super().__init__()
        self.head, self.second, self.first = torch.nn.Linear(8, 3), torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
        self.norm = torch.nn.LayerNorm(8)

    def forward(self, x):
        x = x + torch.tanh(self.first(x))
        return self.head(x + self.norm(self.second(x)))


@jax.custom_vjp
def doubled(x):
    return x


doubled.defvjp(lambda x: (x, None), lambda _, g: (2 * g,))


@jax.custom_vjp
def lost(x):
    return x


lost.defvjp(lambda x: (x, None), lambda _, g: (jnp.full_like(g, jnp.nan),))


class Port(nnx.Module):
    """The same, with something in one place that values do not show."""

    def __init__(self, theirs, **faults):
        self.first, self.second = (nnx.Linear(8, 8, rngs=nnx.Rngs(0)) for _ in range(2))
        self.norm, self.head = nnx.LayerNorm(8, epsilon=1e-5, rngs=nnx.Rngs(0)), nnx.Linear(8, 3, rngs=nnx.Rngs(0))
        self.faults = faults
        for name in ("first", "second", "head"):
            mine, its = getattr(self, name), getattr(theirs, name)
            mine.kernel[...], mine.bias[...] = its.weight.detach().numpy().T, its.bias.detach().numpy()

    def at(self, place, x):
        return self.faults.get(place, lambda x: x)(x)

    def __call__(self, x):
        x = self.at("start", x)
        x = self.at("skip", x) + jnp.tanh(self.at("branch", self.first(x)))
        return self.head(self.at("second skip", x) + self.norm(self.at("middle", self.second(x))))


stop = jax.lax.stop_gradient
FAULTS = {
    "stopped in a branch": ({"middle": stop}, "second.gradient", "no gradient arrives here"),
    "doubled": ({"branch": doubled}, "first.gradient", "ours is 2 times the original's"),
    "stopped on the residual way": ({"skip": stop}, "inputs.0.gradient", None),
    "stopped at the second": ({"second skip": stop}, "first.gradient", None),
    "stopped before the input": ({"start": stop}, "inputs.0.gradient", "no gradient arrives here"),
    "no number": ({"middle": lost}, "second.gradient", None),
    "rounded": ({"middle": lambda x: x.astype(jnp.bfloat16).astype(x.dtype)}, "norm.input", None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_on_the_way_back_is_found_where_it_is(fault):
    places, first, cause = FAULTS[fault]
    torch.manual_seed(0)
    theirs, x = Original(), np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    if fault == "doubled":
        assert check(Port(theirs), theirs, x, gradients=True).verdict == "equal"
        assert check(Port(theirs, **places), theirs, x).verdict == "equal"  # values alone do not show it
    found = certify(made_pair(Port(theirs, **places), theirs, [x], gradients=True))
    assert (found.verdict, found.first_departure) == ("differs", first)
    assert cause is None or re.search(cause, found.cause), found.cause


class Convolved(torch.nn.Module):
    """As many rows as columns and channels, batch norm, an activation in place, and a module that is called twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.nn.BatchNorm2d(8)
        self.act, self.shared = torch.nn.ReLU(inplace=True), torch.nn.Linear(8, 8)
        self.bn.running_mean.normal_()
        self.conv.weight.requires_grad_(False)

    def forward(self, x):
        return self.shared(self.shared(self.act(self.bn(self.conv(x))).mean((2, 3))))


class ConvolvedPort(nnx.Module):
    """The same."""

    def __init__(self, theirs):
        rngs = nnx.Rngs(0)
        self.conv, self.bn = nnx.Conv(3, 8, (3, 3), padding=1, use_bias=False, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
        self.shared = nnx.Linear(8, 8, rngs=rngs)
        self.conv.kernel[...] = theirs.conv.weight.numpy().transpose(2, 3, 1, 0)
        self.bn.mean[...] = theirs.bn.running_mean.numpy()
        self.shared.kernel[...], self.shared.bias[...] = theirs.shared.weight.detach().numpy().T, theirs.shared.bias.detach().numpy()

    def __call__(self, x):
        return self.shared(self.shared(jax.nn.relu(self.bn(self.conv(x))).mean((1, 2))))


def test_images_as_many_as_channels_are_high_are_not_taken_for_one_another_and_nothing_is_overwritten():
    torch.manual_seed(0)
    theirs, x = Convolved(), np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    found = check(ConvolvedPort(theirs), theirs, x, gradients=True)
    assert {"conv", "bn", "bn.gradient", "shared.kernel.gradient", "conv.kernel.gradient"} <= {layer.name for layer in found.layers}
    assert not found.unmatched
    assert check(ConvolvedPort(theirs), theirs, x).verdict == "equal"


def test_both_towers_gradients_are_as_exact_as_open_clips_by_every_module_and_parameter(tmp_path):
    towers = Towers(replace(KINDS["core"].vision, depth=1), replace(KINDS["core"].text, depth=1))
    tensors = random_tensors(towers)
    write_checkpoint(tmp_path / "small.safetensors", towers, tensors)
    clip, original = load_clip(tmp_path / "small.safetensors", config=towers), build_original("open_clip", towers, tensors)
    images = random_images(4, towers.vision.image_size, towers.vision.image_size)
    found = certify(tower_pair(clip, original, "open_clip", towers, images, random_ids(3, towers), gradients=True))
    assert found.verdict == "equal", found.first_departure
    names = {layer.name for layer in found.layers}
    inside = ["pool.q", "blocks.0.attn.qkv.gradient", "text.blocks.0.attn.qkv", "text.blocks.0.attn.out.gradient"]  # of fused modules, too
    parameters = ["positions", "pool.probe", "blocks.0.attn.qkv.bias", "text.embedding", "text.projection.kernel"]
    assert {*inside, *(f"{name}.gradient" for name in [*parameters, "inputs.0"])} <= names


def schedule(step):
    return jnp.minimum(1, (step + 1) / 4)


def matrices(parameters):
    return {name: x.ndim > 1 for name, x in parameters.items()}


def rates(step):
    return 1e-3 * schedule(step)


def theirs(parameters):
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 4))


def plain_moments(update, state, _=None):
    state = (
        jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state[0], update),
        jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, state[1], update),
    )
    return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + 1e-8), *state), state


UNCORRECTED = optax.GradientTransformation(lambda p: (optax.tree.zeros_like(p), optax.tree.zeros_like(p)), plain_moments)
WRONG = {
    "decay": (optax.adamw(rates, weight_decay=0.01), "weight decay 0.01 here"),
    "epsilon": (optax.adamw(rates, weight_decay=0.05, eps=1e-6), "epsilon 1e-06 here"),
    "mask": (
        optax.adamw(rates, weight_decay=0.05, mask=lambda p: {n: x.ndim > 1 for n, x in p.items()}),
        "no weight decay of vectors here",
    ),
    "coupled": (optax.chain(optax.add_decayed_weights(0.05), optax.adam(rates)), r"added to the gradient \(Adam with L2\) here"),
    "unscaled": (optax.chain(optax.adam(rates), optax.add_decayed_weights(-0.05)), "decay not times the rate here"),
    "schedule": (optax.adamw(lambda step: 1e-3 * schedule(step + 1), weight_decay=0.05), "rates a step ahead here"),
    "beta": (optax.adamw(rates, weight_decay=0.05, b2=0.99), "betas 0.9 and 0.99 here"),
    "bias": (optax.chain(UNCORRECTED, optax.add_decayed_weights(0.05), optax.scale_by_learning_rate(rates)), "no correction of the bias"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_an_optimizer_that_is_another_is_found_at_its_first_step_with_what_is_wrong(fault):
    optimizer, cause = WRONG[fault]
    found = certify(optimizer_pair(optimizer, theirs, steps=3))
    assert found.first_departure == {"mask": "step.1.vector", "beta": "step.2.matrix"}.get(fault, "step.1.matrix")
    assert re.search(cause, found.cause), found.cause


def test_adamw_with_a_schedule_and_decay_moves_as_torchs_does():
    assert len(check_optimizer(optax.adamw(rates, weight_decay=0.05), theirs, steps=8).layers) == 16
    with pytest.raises(AssertionError, match=r"step.1.matrix: error .*; no weight decay here"):
        check_optimizer(optax.adam(rates), theirs, steps=2)
