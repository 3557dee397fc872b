"""Dropout of an adapter's input against PEFT's, and what it must not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxface.adapters.adapt import adapt
from jaxface.adapters.dropout_keys import Keys, set_keys
from jaxface.adapters.low_rank import LowRank
from jaxface.adapters.places import linears
from jaxface.adapters.task_specific import TaskLowRank
from jaxface.errors import UserError
from jaxface.kernels.dropout import drop
from jaxface.originals.reference import import_torch
from tiny_encoder import random_images, randomized, tiny_encoder

pytestmark = pytest.mark.usefixtures("strict_dtypes")

torch, peft = import_torch("peft")
RATE = 0.3


class Masked(torch.nn.Module):
    """PEFT's dropout with a mask that is given."""

    def __init__(self, kept):
        super().__init__()
        self.kept = torch.from_numpy(kept)

    def forward(self, x):
        return torch.where(self.kept, x / (1 - RATE), 0)


@pytest.mark.parametrize("dora", [False, True])
def test_the_product_and_its_gradients_are_pefts_for_the_same_mask(dora):
    rng = np.random.default_rng(0)
    x, w, a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 5, 12), (12, 8), (12, 4), (4, 8)))
    kernel = LowRank(jnp.asarray(w), 4, dora=dora, dropout=RATE, rngs=nnx.Rngs(0))
    kernel.a[...], kernel.b[...] = jnp.asarray(a), jnp.asarray(b)
    keys = jax.random.split(jax.random.key(1), 2)
    kernel.keys = Keys(keys)
    kept = np.asarray(drop(jnp.ones_like(x), keys, RATE)) > 0

    model = torch.nn.Sequential(torch.nn.Linear(12, 8, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.from_numpy(w.T))
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["0"], r=4, lora_alpha=4, use_dora=dora, lora_dropout=RATE))
    layer = model.base_model.model[0]
    layer.lora_dropout["default"] = Masked(kept)
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(torch.from_numpy(a.T))
        layer.lora_B["default"].weight.copy_(torch.from_numpy(b.T))
    theirs = model.train()(torch.from_numpy(x))
    theirs.square().sum().backward()

    np.testing.assert_allclose(jnp.asarray(x) @ kernel, theirs.detach(), rtol=1e-5, atol=1e-5)
    gradient = jax.jit(jax.grad(lambda kernel: jnp.sum((jnp.asarray(x) @ kernel) ** 2), allow_int=True))(kernel)
    np.testing.assert_allclose(gradient.a[...].T, layer.lora_A["default"].weight.grad, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(gradient.b[...].T, layer.lora_B["default"].weight.grad, rtol=1e-4, atol=1e-3)


def test_a_share_of_the_values_is_left_out_and_the_mean_stays():
    x = drop(jnp.ones((4, 200, 200)), jax.random.split(jax.random.key(0), 4), RATE)
    assert abs(float((x == 0).mean()) - RATE) < 0.01
    assert abs(float(x.mean()) - 1) < 0.01


@pytest.mark.parametrize("method", ["lora", "dora", "mtlora"])
def test_a_sample_has_the_same_mask_on_whichever_device_it_is(method):
    encoder = randomized(
        adapt(tiny_encoder(), method, rank=4, dropout=RATE, **({"num_tasks": 2} if method == "mtlora" else {})), seed=1, scale=0.1
    )
    images = jnp.concatenate([random_images()] * 2)[:4]

    @jax.jit
    def run(encoder, images, samples):
        set_keys(encoder, jax.random.key(5), samples)
        return encoder(images)

    whole = run(encoder, images, jnp.arange(4))
    halves = [run(encoder, images[i : i + 2], jnp.arange(i, i + 2)) for i in (0, 2)]
    np.testing.assert_allclose(whole, jnp.concatenate(halves, -2), rtol=2e-4, atol=2e-5)
    assert not np.allclose(whole, jax.jit(lambda e, x: e(x))(encoder, images), rtol=1e-3)  # and without keys nothing is dropped
    assert all(kernel.keys is None for kernel in (linear.kernel for _, linear in linears(encoder)) if hasattr(kernel, "keys"))


@pytest.mark.parametrize("shared", [True, False])
def test_an_update_per_task_drops_out_its_input_and_the_frozen_kernel_sees_all_of_it(shared):
    rng = np.random.default_rng(0)
    w, a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((6, 4), (3, 6, 2), (3, 2, 4)))
    x = rng.normal(size=(5, 7, 6) if shared else (3, 5, 7, 6)).astype(np.float32)
    kernel = TaskLowRank(jnp.asarray(w), 2, 3, dropout=RATE, rngs=nnx.Rngs(0))
    kernel.a[...], kernel.b[...] = jnp.asarray(a), jnp.asarray(b)
    keys = jax.random.split(jax.random.key(1), 5)
    kernel.keys = Keys(keys)
    kept = np.asarray(drop(jnp.ones((5, 7, 6)), keys, RATE))
    for task, got in enumerate(jnp.asarray(x) @ kernel):
        own = x if shared else x[task]
        np.testing.assert_allclose(got, own @ w + (own * kept) @ a[task] @ b[task], rtol=1e-4, atol=1e-5)


def test_mtlora_hands_its_dropout_to_the_updates_of_each_task_too():
    adapted = adapt(tiny_encoder(), "mtlora", rank=2, num_tasks=2, dropout=RATE)
    rates = {linear.kernel.dropout for _, linear in linears(adapted) if isinstance(linear.kernel, TaskLowRank)}
    assert rates == {RATE}


def test_a_share_that_leaves_nothing_is_refused():
    with pytest.raises(UserError, match=r"adapter dropout 1.0: expected at least 0 and below 1"):
        adapt(tiny_encoder(), "lora", dropout=1.0)
