import jax
import numpy as np
import pytest

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
