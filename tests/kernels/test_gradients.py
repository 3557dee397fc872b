"""The backward passes that are written out, against autodiff of the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.kernels.attention import KERNELS, attention, register
from jaxface.kernels.gelu import gelu
from jaxface.kernels.normalize import normalize


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def assert_same_gradients(ours, plain, *arguments):
    """Value and gradients of a weighted sum of the outputs."""
    weights = normal(*jax.eval_shape(plain, *arguments).shape, seed=9)
    places = tuple(range(len(arguments)))
    results = [jax.jit(jax.value_and_grad(lambda *args, f=f: jnp.sum(f(*args) * weights), places))(*arguments) for f in (ours, plain)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), *results)


def test_gelu_has_the_gradient_of_x_phi_of_x():
    x = jnp.linspace(-6, 6, 200)
    assert_same_gradients(gelu, lambda x: x * jax.scipy.stats.norm.cdf(x), x)


def test_layer_norm_has_the_gradient_of_its_formula():
    def plain(x, scale, bias):
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale + bias

    assert_same_gradients(normalize, plain, 3 + 2 * normal(5, 7, 12), normal(12, seed=1), normal(12, seed=2))


def rotated(x, angles):
    """Interleaved pairs as complex numbers, turned."""
    pairs = jax.lax.complex(x[..., 0::2], x[..., 1::2]) * jnp.exp(1j * angles)
    return jnp.stack([pairs.real, pairs.imag], -1).reshape(x.shape)


@pytest.mark.parametrize("name", sorted(set(KERNELS) - {"cudnn", "pallas"}))
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_every_attention_kernel_has_the_gradient_of_the_formula(name, causal, turned):
    angles = normal(6, 4, seed=7) if turned else None

    def plain(q, k, v):
        if turned:
            q, k = rotated(q, angles), rotated(k, angles)
        scores = jnp.einsum("bhnd,bhmd->bhnm", q, k) / jnp.sqrt(8.0)
        if causal:
            scores = jnp.where(jnp.tril(jnp.ones((6, 6), bool)), scores, -jnp.inf)
        return jax.nn.softmax(scores) @ v

    def ours(q, k, v):
        return attention(q, k, v, angles=angles, causal=causal, kernel=name)

    assert_same_gradients(ours, plain, *(normal(2, 3, 6, 8, seed=s) for s in range(3)))


def test_one_query_may_ask_many_keys_and_large_logits_stay_finite():
    q, k, v = 100 * normal(2, 3, 1, 8), 100 * normal(2, 3, 11, 8, seed=1), normal(2, 3, 11, 8, seed=2)
    y = attention(q, k, v)
    assert y.shape == (2, 3, 1, 8)
    assert jnp.isfinite(y).all()


def test_a_kernel_of_ones_own_is_chosen_by_name():
    with KERNELS.temporarily():
        register("zeros", lambda q, k, v, *, angles=None, causal=False: jnp.zeros_like(q))
        assert not attention(normal(1, 1, 2, 4), normal(1, 1, 2, 4), normal(1, 1, 2, 4), kernel="zeros").any()
    with pytest.raises(UserError, match="no attention kernel 'zeros'; known: xla"):
        attention(*[normal(1, 1, 2, 4)] * 3, kernel="zeros")
