from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxface.adapters.adapt import adapt, adapt_with_groups, merge
from jaxface.adapters.low_rank import LowRank
from jaxface.adapters.methods import METHODS, Group, group_of, linears, register_method
from jaxface.adapters.options import AdapterOptions
from jaxface.errors import UserError
from jaxface.models.tree import flatten
from tiny_encoder import random_images, randomized, tiny_encoder

pytestmark = pytest.mark.usefixtures("strict_dtypes")


@jax.jit
def run(encoder, images):
    return encoder(images)


def relative(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return float(np.abs(a - b).max() / np.abs(b).max())


def with_consistent_norms(encoder):
    """Computes ||W||^2 again: the constant belongs to the base, which `randomized` changed."""
    for _, linear in linears(encoder):
        if isinstance(linear.kernel, LowRank) and linear.kernel.magnitude is not None:
            linear.kernel.base_norms[...] = jnp.sum(linear.kernel.base[...] ** 2, -2)
    return encoder


@pytest.mark.parametrize("method", ["lp", "ap", "ft4", "full", "lora", "dora"])
def test_merged_equals_unmerged(method):
    encoder, images = tiny_encoder(), random_images()
    adapted = with_consistent_norms(
        randomized(adapt(encoder, method, **({"rank": 4} if method in ("lora", "dora") else {})), seed=2, scale=0.03)
    )
    merged = merge(adapted)
    assert len(merged.stages) == 1
    assert relative(run(adapted, images), run(merged, images)) < 3e-6
    assert jax.tree.structure(merged) == jax.tree.structure(encoder)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_adapting_alone_changes_no_output(method):
    encoder, images = tiny_encoder(), random_images()
    before = run(encoder, images)
    options = {name: value for name, value in {"rank": 4, "num_tasks": 2}.items() if name in METHODS.get(method).options}
    after = run(adapt(encoder, method, **options), images)
    assert relative(after, jnp.broadcast_to(before, after.shape)) < 1e-5
    assert relative(run(encoder, images), before) == 0  # the original is left alone


def test_ft4_trains_the_last_four_blocks_and_the_pool():
    from jaxface.models.encoder import Encoder
    from jaxface.models.variants import get_variant

    encoder = nnx.eval_shape(lambda: Encoder(get_variant("PE-Core-T16-384"), rngs=nnx.Rngs(0)))
    made = []
    jax.eval_shape(lambda e: made.append(adapt_with_groups(e, "ft4", AdapterOptions(), nnx.Rngs(0))), encoder)
    adapted, groups = made[0]
    arrays, _ = flatten(adapted)
    assert [stage.norm1.scale.shape[0] for stage in adapted.stages] == [8, 4]
    trained = {name for name in arrays if group_of(name.split("."), groups)}
    assert trained == {name for name in arrays if name.startswith(("stages.1.", "pool."))}
    shallow, groups = adapt_with_groups(tiny_encoder(), "ft4", AdapterOptions(), nnx.Rngs(0))  # of three blocks: all of them
    trained = {name for name in flatten(shallow)[0] if group_of(name.split("."), groups)}
    assert trained == {name for name in flatten(tiny_encoder())[0] if name.startswith(("stages.0.", "pool."))}


def test_lora_plus_gives_b_its_own_group_and_a_and_magnitude_the_slow_one():
    encoder = tiny_encoder()
    adapted, groups = adapt_with_groups(encoder, "dora", AdapterOptions(rank=2), nnx.Rngs(0))
    found = {name: group_of(name.split("."), groups) for name in flatten(adapted)[0]}
    names = {name: group.name for name, group in found.items() if group}
    assert names["stages.0.attn.qkv.kernel.a"] == names["stages.0.mlp.fc.kernel.magnitude"] == "backbone"
    assert names["stages.0.attn.qkv.kernel.b"] == "backbone_plus"
    assert names["pool.out.kernel.a"] == "pool"
    assert names["pool.mlp.proj.kernel.b"] == "pool_plus"
    assert not any(name.endswith(("base", "bias", "scale", "probe", "base_norms")) for name in names)
    assert not any(".q." in name or ".kv." in name for name in names)


def test_unless_told_otherwise_adapters_are_the_thesiss():
    options, kernel = AdapterOptions(), adapt(tiny_encoder(), "dora").stages[0].mlp.fc.kernel
    assert (options.rank, options.factor, options.dropout, options.train_magnitude) == (64, 1, 0, True)
    assert kernel.a.shape[-1] == 64
    assert kernel.detach_norm  # a constant of the backward pass (DoRA, section 4.3)


def test_mtlora_gives_each_task_its_own_feature_and_gradient():
    encoder, images = tiny_encoder(), random_images()
    adapted = randomized(adapt(encoder, "mtlora", rank=2, num_tasks=3), seed=3, scale=0.05)
    arrays, structure = flatten(adapted)
    features = run(adapted, images)
    assert features.shape == (3, 4, 24)
    assert relative(features[0], features[1]) > 1e-2
    g = jax.jit(jax.grad(lambda arrays: jnp.sum(structure.build(arrays)(images)[1] ** 2)))(arrays)
    name = "stages.1.mlp.fc.kernel.b"
    assert float(jnp.abs(g[name][0, 1]).max()) > 0
    assert float(jnp.abs(g[name][0, 0]).max()) == float(jnp.abs(g[name][0, 2]).max()) == 0
    assert float(jnp.abs(g["stages.0.mlp.fc.kernel.b"]).max()) > 0  # the shared part hears every task


def test_mtloras_probes_and_updates_learn_at_the_rates_of_what_they_belong_to():
    adapted, groups = adapt_with_groups(tiny_encoder(), "mtlora", AdapterOptions(rank=2, num_tasks=2), nnx.Rngs(0))
    found = {name: group_of(name.split("."), groups) for name in flatten(adapted)[0]}
    names = {name: group.name for name, group in found.items() if group}
    assert names["pool.probe"] == names["pool.q.kernel.a"] == "pool"
    assert names["pool.q.kernel.b"] == "pool_plus"
    assert names["stages.1.mlp.fc.kernel.a"] == "backbone"
    assert names["stages.1.mlp.fc.kernel.b"] == "backbone_plus"


def test_only_the_blocks_that_are_named_are_adapted():
    encoder, images = tiny_encoder(), random_images()
    adapted = randomized(adapt(encoder, "lora", rank=2, blocks="0,2"), seed=4, scale=0.05)
    assert [isinstance(stage.attn.qkv.kernel, LowRank) for stage in adapted.stages] == [True, False, True]
    assert relative(run(adapted, images), run(merge(adapted), images)) < 3e-6
    for words, message in [("3", "block 3: the encoder has blocks 0 to 2"), ("2-1", "blocks '2-1': expected"), ("a", "blocks 'a'")]:
        with pytest.raises(UserError, match=message):
            adapt(encoder, "lora", blocks=words)


def test_task_specific_blocks_may_stand_before_shared_ones():
    encoder, images = tiny_encoder(), random_images()
    adapted = randomized(adapt(encoder, "mtlora", rank=2, num_tasks=2, blocks="0,2"), seed=3, scale=0.05)
    arrays, structure = flatten(adapted)
    features = run(adapted, images)
    assert features.shape == (2, 4, 24)
    name = "stages.0.attn.qkv.kernel.b"
    changed = run(structure.build(arrays | {name: arrays[name].at[:, 1].multiply(3.0)}), images)
    assert relative(changed[0], features[0]) == 0
    assert relative(changed[1], features[1]) > 1e-3


def test_the_scale_is_stable_in_rank_where_it_is_asked_for():
    assert AdapterOptions(rank=16, scaling=0.5, rslora=True).factor == 2
    assert AdapterOptions(rank=16, scaling=0.5).factor == 0.5


def test_a_method_registered_from_outside_is_known_by_its_name():
    encoder = tiny_encoder()

    with METHODS.temporarily():

        @register_method("bitfit")
        def bitfit(encoder, options, rngs):
            return [Group(r"\.bias$", rate="backbone")]

        adapted, groups = adapt_with_groups(encoder, "bitfit", AdapterOptions(), nnx.Rngs(0))
    trained = [name for name in flatten(adapted)[0] if group_of(name.split("."), groups)]
    assert trained
    assert all(name.endswith(".bias") for name in trained)


def test_unknown_methods_and_options_are_named():
    with pytest.raises(UserError, match=r"no method 'loha'; known: .*dora"):
        adapt(None, "loha")
    with pytest.raises(UserError, match=r"no adapter option 'rnk'; known: rank"):
        adapt(None, "dora", rnk=3)
    with pytest.raises(UserError, match="rank 0"):
        AdapterOptions(rank=0)


NOT_AS_USUAL = {
    **{"rank": 3, "scaling": 0.5, "rslora": True, "split_qkv": True, "pool_inputs": True, "detach_norm": False, "dropout": 0.5},
    **{"init": "pissa", "targets": r"pool\..*|blocks\.1\..*", "train_magnitude": False, "blocks": "1", "num_tasks": 2, "shared_set": True},
    **{"task_dora": True, "fusion": "mlp"},
}


@pytest.mark.parametrize("method", METHODS)
def test_every_option_of_every_method_is_honoured_or_refused(method, monkeypatch):
    assert set(NOT_AS_USUAL) == set(AdapterOptions.__dataclass_fields__)
    takes = {}

    def what_is_made(options):
        """Everything that training may differ in: names, shapes, static values, and what trains."""
        encoder, groups = adapt_with_groups(tiny_encoder(), method, options, nnx.Rngs(0))
        graph, arrays = nnx.split(encoder)
        names = {".".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(arrays)}
        return str(graph), names, list(groups)

    usual = what_is_made(AdapterOptions(rank=2))
    for name, value in NOT_AS_USUAL.items():
        try:
            small = (
                {"rank": 2} if name == "init" and "rank" in METHODS.get(method).options else {}
            )  # the usual rank is no rank of its kernels
            adapt(tiny_encoder(), method, **small, **{name: value})
        except UserError as error:
            takes[name] = str(error)
            continue
        takes[name] = ""
        assert what_is_made(replace(AdapterOptions(rank=2), **{name: value})) != usual, name
    assert {name for name, refusal in takes.items() if not refusal} == set(METHODS.get(method).options)
    for name, refusal in takes.items():
        assert not refusal or f"adapter {name} {NOT_AS_USUAL[name]}: method {method} does not take it; it takes " in refusal


@pytest.mark.parametrize("blocks", ["", "0,2", "1"])
def test_hidden_states_of_an_encoder_with_streams_of_tasks_have_an_axis_of_tasks(blocks):
    adapted = randomized(adapt(tiny_encoder(), "mtlora", rank=2, num_tasks=2, blocks=blocks), seed=3, scale=0.05)
    images = random_images()
    states, tokens = adapted.hidden_states(images), adapted.tokens(images)
    assert states.shape == (adapted.config.depth + 1, *tokens.shape)
    np.testing.assert_array_equal(states[0, 0], states[0, 1])  # before the first block all tasks are one
    np.testing.assert_allclose(adapted.norm_post(states[-1]), tokens, atol=1e-5)
