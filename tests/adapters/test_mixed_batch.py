import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxface
from jaxface.adapters.adapt import merge
from jaxface.adapters.mixed_batch import stack_adapters
from jaxface.errors import UserError
from jaxface.models.tree import flatten
from tiny_encoder import random_images, tiny_encoder

pytestmark = pytest.mark.usefixtures("strict_dtypes")


@jax.jit
def run(encoder, images):
    return encoder(images)


def adapted(seed, method, **options):
    """The tiny encoder with an adapter whose every parameter is random."""
    arrays, structure = flatten(jaxface.adapt(tiny_encoder(), method, seed=seed, **options))
    rng = np.random.default_rng(seed)
    own = (".kernel.a", ".kernel.b", ".kernel.magnitude")
    drawn = {n: 0.1 * rng.normal(size=v.shape) for n, v in arrays.items() if n.endswith(own)}
    return structure.build(arrays, {n: jax.device_put(np.asarray(np.asarray(arrays[n]) + v, arrays[n].dtype)) for n, v in drawn.items()})


@pytest.fixture(scope="module")
def adapters():
    return {
        "wide": adapted(0, "lora", rank=5),
        "dora": adapted(1, "dora", rank=2, pool_inputs=True),
        "split": adapted(2, "dora", rank=3, split_qkv=True),
    }


def test_each_sample_of_a_batch_is_answered_by_its_own_adapter(adapters):
    images = random_images(6)
    names = ["dora", "wide", "split", "dora", "split", "wide"]
    together = stack_adapters(adapters)
    mixed = run(together.pick(names), images)
    alone = {name: run(encoder, images) for name, encoder in adapters.items()}
    for i, name in enumerate(names):
        np.testing.assert_allclose(mixed[i], alone[name][i], rtol=2e-5, atol=2e-5)
    assert float(jnp.abs(alone["dora"] - alone["wide"]).max()) > 1e-2


def test_one_compiled_program_serves_every_choice(adapters):
    together, images = stack_adapters(adapters), random_images(2)
    traced = []

    @jax.jit
    def choose(index):
        traced.append(index)
        return together.pick_numbers(index)(images)

    first, second = choose(jnp.array([0, 1])), choose(jnp.array([1, 0]))
    assert len(traced) == 1
    assert float(jnp.abs(first - second).max()) > 1e-3


def test_a_weighted_sum_of_adapters_adds_their_changes_of_each_kernel(adapters):
    together = stack_adapters(adapters)
    base, blend = flatten(tiny_encoder())[0], flatten(together.blend({"wide": 0.25, "split": -0.5}))[0]
    changes = {name: flatten(merge(adapters[name]))[0] for name in ("wide", "split")}
    for name in ("stages.0.attn.qkv.kernel", "stages.0.mlp.proj.kernel", "pool.out.kernel"):
        want = base[name] + 0.25 * (changes["wide"][name] - base[name]) - 0.5 * (changes["split"][name] - base[name])
        np.testing.assert_allclose(blend[name], want, rtol=1e-5, atol=1e-6)
    assert together.only("wide") is adapters["wide"]


def test_what_cannot_stand_together_is_named(adapters):
    together = stack_adapters(adapters)
    with pytest.raises(UserError, match="no adapter 'age'; loaded: wide, dora, split"):
        together.pick(["age"])
    with pytest.raises(UserError, match="no adapter 'age'"):
        together.only("age")
    with pytest.raises(UserError, match="no adapter 'age'"):
        together.blend({"wide": 0.5, "age": 0.5})
    with pytest.raises(UserError, match="2 adapters picked for a batch of 3 images"):
        together.pick(["wide", "dora"])(jnp.zeros((3, 16, 16, 3)))
    with pytest.raises(UserError, match="no adapter to stack"):
        stack_adapters({})
    arrays, structure = flatten(adapters["wide"])
    other = structure.build({name: array + 1 if name == "stages.0.mlp.fc.kernel.base" else array for name, array in arrays.items()})
    with pytest.raises(UserError, match=r"'other' stands on another stages\.0\.mlp\.fc\.kernel than 'wide'"):
        stack_adapters({"wide": adapters["wide"], "other": other})
