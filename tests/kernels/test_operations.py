"""Normalisation, adapted product, MLP and patch embedding by kernels of one's own: found right or wrong, and trained with."""

from contextlib import ExitStack

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxface
from jaxface.adapters.low_rank import LowRank
from jaxface.errors import UserError
from jaxface.kernels.operations import OPERATIONS, OWN, kernel_choice, register_kernel
from jaxface.models.encoder import use_kernels
from jaxface.models.tree import flatten
from jaxface.runs.config import RANDOM, Config, EncoderOptions, MethodOptions
from jaxface.runs.model import make_parts
from tiny_encoder import random_images, tiny_encoder


def normalization(x, scale, bias, epsilon):
    wide = x.astype(jnp.float32)
    wide = (wide - wide.mean(-1, keepdims=True)) * jax.lax.rsqrt(wide.var(-1, keepdims=True) + epsilon)
    return (wide * scale + bias).astype(x.dtype)


def adapted_product(x, w, a, b, gain):
    y = x @ w + jnp.matmul(x, a.astype(x.dtype), preferred_element_type=jnp.float32) @ b
    return (y if gain is None else y * gain).astype(x.dtype)


def mlp(x, fc, proj, activation):
    return proj(activation(fc(x)))


def patch_embedding(images, patch, linear):
    cut = jax.lax.conv_general_dilated_patches(jnp.moveaxis(images, -1, 1), (patch, patch), (patch, patch), "VALID")
    cut = cut.reshape(len(images), 3, patch * patch, -1)
    return linear(jnp.einsum("bcpn->bnpc", cut).reshape(len(images), -1, 3 * patch * patch))


MINE = {function.__name__: function for function in (normalization, adapted_product, mlp, patch_embedding)}


@pytest.fixture
def registered():
    with ExitStack() as stack:
        for operation, function in MINE.items():
            stack.enter_context(OPERATIONS[operation].temporarily())
            register_kernel(operation, "mine")(function)
        yield


@pytest.mark.parametrize("operation", OPERATIONS)
def test_own_kernels_and_ones_in_a_few_lines_conform_and_wrong_ones_are_found(operation):
    for kernel in (OWN, MINE[operation]):
        report = jaxface.kernels.check(kernel, operation=operation, show=False)
        assert report.ok, report
        assert all(row.bytes > 0 for row in report.rows)
    wrong = jaxface.kernels.check(lambda *arguments: 1.1 * MINE[operation](*arguments), operation=operation, show=False)
    assert len(wrong.failures) == len(wrong.rows)
    assert "FAILED" in str(wrong)
    frozen = jaxface.kernels.check(
        lambda x, *rest: MINE[operation](jax.lax.stop_gradient(x), *rest), operation=operation, dtypes=["fp32"], show=False
    )
    assert not frozen.ok  # the result alone is right
    raising = jaxface.kernels.check(lambda *arguments: arguments[99], operation=operation, dtypes=["fp32"], show=False)
    assert "IndexError" in str(raising)


@pytest.mark.usefixtures("registered")
def test_an_encoder_trains_with_kernels_of_ones_own():
    calls = set()
    for operation, function in MINE.items():
        register_kernel(operation, "mine")(lambda *args, function=function: calls.add(function.__name__) or function(*args))

    def gradients(choice):
        encoder = jaxface.adapt(tiny_encoder(), "dora", rank=2)
        use_kernels(encoder, choice)
        arrays, structure = flatten(encoder)
        rng = np.random.default_rng(0)
        trained = {name: array for name, array in arrays.items() if name.endswith((".a", ".b", ".magnitude"))}
        trained = {name: np.asarray(array) + 0.1 * rng.normal(size=array.shape).astype(array.dtype) for name, array in trained.items()}

        def loss(trained):
            return jnp.sum(jnp.sin(structure.build(arrays, trained)(random_images(2))))

        return jax.jit(jax.value_and_grad(loss))(trained)

    expected = gradients({})
    assert not calls
    found = gradients(dict.fromkeys(MINE, "mine"))
    assert calls == set(MINE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, expected)


@pytest.mark.usefixtures("registered")
def test_a_run_takes_the_kernels_that_its_options_name():
    encoder = EncoderOptions(RANDOM, "PE-Mini-10-60", kernels=("adapted_product=mine", "mlp=mine"))
    built = make_parts(Config(encoder=encoder, method=MethodOptions("lora"))).build().encoder
    kernel = built.stages[0].attn.qkv.kernel
    assert isinstance(kernel, LowRank)
    assert (kernel.implementation, built.pool.mlp.implementation, built.norm_pre.implementation) == ("mine", "mine", OWN)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["norm=mine"], "no operation 'norm'; known: normalization"),
        (["mlp=yours"], "no mlp kernel 'yours'; known: own"),
        (["mlp"], "expected OPERATION=NAME"),
        (["mlp=own", "mlp=own"], "each operation once"),
    ],
)
def test_kernels_that_are_not_there_are_one_line(words, message):
    with pytest.raises(UserError, match=message):
        kernel_choice(words)
