"""Quantised frozen kernels: against the rounding rules by hand, and against an adapter on the plain array that they stand for."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxface.adapters.adapt import adapt_with_groups, merge
from jaxface.adapters.low_rank import LowRank
from jaxface.adapters.methods import group_of
from jaxface.adapters.options import AdapterOptions
from jaxface.adapters.quantized import LEVELS, NF4, Int8, Quantized, quantize, quantize_base
from jaxface.errors import UserError
from jaxface.models.encoder import random_encoder
from jaxface.models.tree import arrays_of, flatten
from tiny_encoder import TINY, random_images, tiny_encoder


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([1, 63, 64, 130]), st.floats(1e-6, 1e3), st.integers(0, 10))
def test_int8_is_off_by_half_a_step_at_most_and_nf4_takes_the_nearest_level_of_its_block(inputs, size, seed):
    kernel = size * np.random.default_rng(seed).standard_normal((2, inputs, 3)).astype(np.float32)
    step = np.abs(kernel).max(1, keepdims=True) / 127
    assert (np.abs(Int8(jnp.asarray(kernel)).merge() - kernel) <= 0.5001 * step).all()
    got = np.asarray(NF4(jnp.asarray(kernel)).merge())
    for start in range(0, inputs, 64):
        block = kernel[:, start : start + 64]
        largest = np.abs(block).max(1, keepdims=True).astype(jnp.bfloat16).astype(np.float32)
        distances = np.abs(block[..., None] / largest[..., None] - np.asarray(LEVELS, np.float32))
        chosen = np.abs(got[:, start : start + 64] / largest - block / largest)
        np.testing.assert_allclose(chosen, distances.min(-1), atol=1e-5)


def test_a_column_of_zeros_stays_zero():
    for quantized in (Int8(jnp.zeros((70, 3))), NF4(jnp.zeros((70, 3)))):
        assert quantized.shape == (70, 3)
        assert not quantized.merge().any()


def test_nf4_takes_an_eighth_of_the_bytes_and_int8_a_quarter_but_for_their_scales():
    kernel = normal(3, 128, 64)
    sizes = {kind: sum(leaf.nbytes for leaf in arrays_of(kind(kernel)).values()) / kernel.nbytes for kind in (Int8, NF4)}
    assert sizes[Int8] == pytest.approx(1 / 4 + 1 / 128)
    assert sizes[NF4] == pytest.approx(1 / 8 + 2 / (4 * 64))


def encoder_for(method):
    """The tiny encoder; one with blocks that stay frozen where the last four train."""
    return random_encoder(replace(TINY, depth=5), 0) if method == "ft4" else tiny_encoder()


@pytest.mark.parametrize(("word", "method"), [("nf4", "dora"), ("int8", "mtlora"), ("int8", "ft4"), ("nf4", "lp")])
def test_an_adapted_encoder_computes_what_it_would_on_the_rounded_kernels(word, method):
    encoder, groups = adapt_with_groups(encoder_for(method), method, AdapterOptions(rank=4, num_tasks=2), nnx.Rngs(0))
    quantize(encoder, word, groups)
    plain, _ = adapt_with_groups(encoder, "lp", AdapterOptions(), nnx.Rngs(0))
    kernels = [m for _, m in nnx.iter_modules(plain) if hasattr(m, "kernel") or isinstance(getattr(m, "base", None), Quantized)]
    replaced = 0
    for module in kernels:
        name = "kernel" if isinstance(getattr(module, "kernel", None), Quantized) else "base"
        if isinstance(getattr(module, name, None), Quantized):
            setattr(module, name, nnx.Param(getattr(module, name).merge()))
            replaced += 1
    assert replaced >= 4
    images = random_images(2)

    def run(encoder):
        return jax.jit(lambda encoder: encoder(images))(encoder)

    np.testing.assert_allclose(run(encoder), run(plain), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run(merge(encoder)), run(encoder), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("dora", [False, True])
def test_gradients_are_those_of_the_plain_adapter_and_none_is_formed_or_kept_in_full_for_the_base(dora, dtype):
    kernel, x = normal(3, 64, 96), normal(2, 100, 64).astype(dtype)
    adapter = LowRank(kernel, 4, dora=dora, rngs=nnx.Rngs(0))
    adapter.b[...] = normal(3, 4, 96, seed=3)
    quantized = LowRank(kernel, 4, dora=dora, rngs=nnx.Rngs(0))
    quantize_base(quantized, jax.jit(Int8))
    plain = LowRank(quantized.base.merge(), 4, dora=dora, rngs=nnx.Rngs(0))
    plain.b[...] = adapter.b[...]
    if dora:
        plain.magnitude[...] = adapter.magnitude[...]

    def total(x, a, b, adapter):
        def body(x, layer):
            adapter, a, b = layer
            adapter.a[...], adapter.b[...] = a, b
            y = x @ adapter
            return (y[..., :64] + y[..., 32:]).astype(x.dtype), None

        return jnp.sum(jax.lax.scan(body, x, (adapter, a, b))[0].astype(jnp.float32) ** 2)

    gradient = jax.jit(jax.grad(total, (0, 1, 2)))
    arguments = (x, adapter.a[...], adapter.b[...])
    ours, theirs = gradient(*arguments, quantized), gradient(*arguments, plain)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-2 if dtype == jnp.bfloat16 else 1e-4, atol=float(2e-3 * jnp.abs(b).max()))
    text = gradient.lower(*arguments, quantized).compile().as_text()
    kept = re.findall(r"(?:f32|bf16)\[3,64,96\]", text)
    assert not kept, kept
    assert re.findall(r"f32\[3,64,96\]", gradient.lower(*arguments, plain).compile().as_text())


@pytest.mark.parametrize("method", ["ft4", "mtlora"])  # whose shared blocks are DoRA's
def test_a_step_keeps_no_more_for_its_backward_pass_than_on_full_kernels(method):
    def temporary_bytes(word):
        encoder, groups = adapt_with_groups(encoder_for(method), method, AdapterOptions(rank=4, num_tasks=2), nnx.Rngs(0))
        quantize(encoder, word, groups)
        trained = {name: leaf for name, leaf in arrays_of(encoder).items() if group_of([name], groups)}
        frozen = {name: leaf for name, leaf in arrays_of(encoder).items() if name not in trained}
        _, structure = flatten(encoder)

        def loss(trained, frozen, images):
            return jnp.sum(structure.build(frozen, trained)(images) ** 2)

        images = jnp.concatenate([random_images()] * 8)
        return jax.jit(jax.grad(loss)).lower(trained, frozen, images).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes("int8") <= 1.05 * temporary_bytes("full")


def test_words_that_are_no_format_and_methods_that_freeze_nothing_are_one_line():
    with pytest.raises(UserError, match="no format of frozen kernels 'int3'; known: int8, nf4, or full"):
        quantize(tiny_encoder(), "int3")
    encoder, groups = adapt_with_groups(tiny_encoder(), "full", AdapterOptions(), nnx.Rngs(0))
    with pytest.raises(UserError, match="trains every kernel"):
        quantize(encoder, "nf4", groups)
