"""Multi-scale MTLoRA and TS-DoRA, against plain blocks with one dense kernel for each task."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxface
from jaxface.adapters.adapt import unload
from jaxface.adapters.places import linears
from jaxface.adapters.quantized import quantize
from jaxface.errors import UserError
from jaxface.models.encoder import random_encoder
from jaxface.models.tree import flatten
from jaxface.models.variants import TextConfig
from tiny_encoder import TINY, random_images, tiny_clip, tiny_encoder

TASKS, IMAGES = 2, random_images(3)
SMALL = replace(TINY, depth=2)
ADDED = (".kernel.a", ".kernel.b", ".magnitude")


def adapted(seed=0, **options):
    """MTLoRA with noise in all that trains, so that every part has its say."""
    encoder = jaxface.adapt(random_encoder(SMALL, 0), "mtlora", rank=2, num_tasks=TASKS, **options)
    arrays, structure = flatten(encoder)
    random = np.random.default_rng(seed)
    return structure.build(
        {
            name: jax.device_put(np.asarray(value) + np.asarray(0.2 * random.normal(size=value.shape), value.dtype))
            if name.endswith(ADDED) or name.startswith("fusion.") or name == "pool.probe"
            else value
            for name, value in arrays.items()
        }
    )


def dense(kernel, task=None):
    """One plain kernel [in, out] of an adapted one without an axis of depth, by the papers' formulas."""
    a, b = (value[...] if task is None else value[...][task] for value in (kernel.a, kernel.b))
    groups = a.shape[-1] // b.shape[-2]
    update = jnp.concatenate([x @ y for x, y in zip(jnp.split(a, groups, 1), jnp.split(b, groups, 1), strict=True)], 1)
    w = jax.lax.stop_gradient(kernel.base[...]) + update
    if kernel.magnitude is None:
        return w
    length = jnp.linalg.norm(w, axis=0)
    length = jax.lax.stop_gradient(length) if kernel.detach_norm else length
    return (kernel.magnitude[...] if task is None else kernel.magnitude[...][task]) * w / length


def plain(module, task=None):
    """A copy of a block or a pool with dense kernels; it shares nothing with how the adapted ones multiply."""
    module = nnx.clone(module)
    for _, linear in linears(module):
        linear.kernel = nnx.Param(dense(linear.kernel, task))
    return module


def standardised(x):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)


def fused(fusion, scales, task):
    """Tokens [B, N, D] of a task at every depth, token by token."""
    seen = [standardised(x) for x in scales]
    if hasattr(fusion, "gate"):
        scores = [x @ fusion.query[...][task] / np.sqrt(32) + fusion.bias[...][task, s] for s, x in enumerate(seen)]
        total = sum(jnp.exp(score) for score in scores)
        return scales[-1] + fusion.gate[...][task] * sum((jnp.exp(s) / total)[..., None] * x for s, x in zip(scores, seen, strict=True))
    hidden = jnp.concatenate(seen, -1) @ fusion.fc[...][task] + fusion.fc_bias[...][task]
    return scales[-1] + jax.nn.gelu(hidden, approximate=False) @ fusion.proj[...][task] + fusion.proj_bias[...][task]


def by_hand(encoder, images):
    """Each task's feature, [T, B, D], from plain blocks."""
    x, angles = encoder.embed(images)
    scales = [[] for _ in range(TASKS)]
    blocks = [(jax.tree.map(lambda v, i=i: v[i], stage)) for stage in encoder.stages for i in range(stage.norm1.scale.shape[0])]
    for block in blocks:
        own = block.attn.qkv.kernel.a.ndim == 3
        if own:
            for task in range(TASKS):
                scales[task].append(plain(block, task)(x, angles))
        x = plain(block, -1 if own else None)(x, angles)
    if not own:
        scales = [[*each, x] for each in scales]
    features = []
    for task in range(TASKS):
        pool = plain(encoder.pool, task)
        pool.probe = nnx.Param(encoder.pool.probe[...][task, 0])
        tokens = scales[task][-1] if encoder.fusion is None else fused(encoder.fusion, scales[task], task)
        features.append(encoder.projection(pool(encoder.norm_post(tokens))))
    return jnp.stack(features)


@pytest.mark.parametrize(
    "options",
    [
        {"blocks": "1"},
        {"fusion": "attention", "blocks": "0,1", "task_dora": True},
        {"fusion": "mlp", "blocks": "0", "task_dora": True, "detach_norm": False},
    ],
    ids=str,
)
def test_features_and_gradients_equal_those_of_dense_kernels_for_each_task(options):
    arrays, structure = flatten(adapted(**options))
    train = {n: v for n, v in arrays.items() if n.endswith(ADDED) or n.startswith(("fusion.", "pool.probe"))}
    weight = jax.random.normal(jax.random.key(3), (TASKS, 3, 24))

    @jax.jit
    def both(train):
        def value(run, train):
            y = run(structure.build(arrays, train))
            return jnp.sum(weight * y), y

        return [
            jax.value_and_grad(lambda t, run=run: value(run, t), has_aux=True)(train)
            for run in (lambda e: e(IMAGES), lambda e: by_hand(e, IMAGES))
        ]

    ((_, y), ours), ((_, wanted), theirs) = jax.tree.map(np.asarray, both(train))
    assert np.abs(y - wanted).max() < 1e-5 * np.abs(wanted).max()
    for name, gradient in ours.items():
        assert np.abs(gradient - theirs[name]).max() <= 1e-5 * np.abs(theirs[name]).max(), name
        assert np.abs(gradient).max() > 0, name


def test_a_merged_one_gives_the_same_and_computes_no_length_again():
    encoder = adapted(fusion="attention", blocks="0,1", task_dora=True)
    merged = jaxface.merge(encoder)
    run = jax.jit(lambda encoder: encoder(IMAGES))
    np.testing.assert_allclose(run(merged), run(encoder), rtol=1e-4, atol=1e-5)
    assert merged.stages[0].mlp.fc.kernel.base_norms is None
    assert encoder.stages[0].mlp.fc.kernel.base_norms is not None
    again = unload(encoder)
    assert (again.fusion, len(again.stages), again.stages[0].branches) == (None, 1, False)
    np.testing.assert_allclose(run(again)[0].shape, (3, 24))


def test_task_specific_dora_stands_on_kernels_in_fewer_bits():
    rounded = adapted(fusion="mlp", blocks="0", task_dora=True)
    quantize(rounded, "nf4")
    arrays, structure = flatten(rounded)
    assert not any(name.endswith("kernel.base") for name in arrays)
    run = jax.jit(lambda encoder: encoder(IMAGES))
    for _, linear in linears(rounded):  # the same kernels as arrays
        if hasattr(linear.kernel, "base"):
            linear.kernel.base = nnx.Param(linear.kernel.base[...])
    np.testing.assert_allclose(run(rounded), run(structure.build(arrays)), rtol=1e-4, atol=1e-4)


def test_hidden_states_of_branching_blocks_are_the_tasks_and_what_cannot_be_is_refused():
    encoder = adapted(fusion="attention", blocks="0")
    states = jax.jit(lambda encoder: encoder.hidden_states(IMAGES))(encoder)
    assert states.shape == (SMALL.depth + 1, TASKS, 3, 17, 32)
    assert [bool((state[0] == state[1]).all()) for state in states] == [True, False, True]
    text = tiny_clip(TextConfig(32, 3, 4, 6, 24, 40)).text
    with pytest.raises(UserError, match="fusion mlp: a text tower has one feature"):
        jaxface.adapt(text, "mtlora", fusion="mlp")
    with pytest.raises(UserError, match=r"no fusion 'sum'; known: attention, mlp, or none"):
        jaxface.adapt(tiny_encoder(), "mtlora", fusion="sum")
