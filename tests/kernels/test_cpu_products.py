import jax
import numpy as np
import pytest

from jaxface.kernels.attention import blocked_attention
from jaxface.kernels.matmul import product


@pytest.mark.parametrize("rows", [(1,), (2, 3)])
def test_a_product_of_few_rows_rounds_far_less_than_one_chain_of_additions(rows):
    random = np.random.RandomState(0)
    x, w = (random.standard_normal(shape).astype(np.float32) for shape in ((*rows, 3072), (3072, 96)))
    exact = x.astype(np.float64) @ w.astype(np.float64)
    chain = np.cumsum(x[..., None] * w, -2, dtype=np.float32)[..., -1, :]
    found = jax.jit(product)(x, w)
    assert np.square(found - exact).mean() < np.square(chain - exact).mean() / 4
    gradient = jax.jit(jax.grad(lambda w, x: product(x, w)[..., 0].sum()))(w, x)
    np.testing.assert_allclose(gradient[:, 0], x.reshape(-1, 3072).sum(0), rtol=1e-6, atol=1e-5)
    assert not gradient[:, 1:].any()


def test_attention_over_many_keys_rounds_less_where_the_highest_precision_is_asked_for():
    random = np.random.RandomState(0)
    q, k, v = (0.3 * random.standard_normal((1, 2, 600, 16)).astype(np.float32) for _ in range(3))
    scores = q.astype(np.float64) @ k.astype(np.float64).swapaxes(-1, -2) / 4
    p = np.exp(scores)
    exact = p / p.sum(-1, keepdims=True) @ (v + np.float32(0.3)).astype(np.float64)
    errors = {}
    for precision in ("default", "highest"):
        with jax.default_matmul_precision(precision):
            errors[precision] = np.linalg.norm(jax.jit(blocked_attention)(q, k, v + np.float32(0.3)) - exact)
    assert errors["highest"] < 0.7 * errors["default"]
