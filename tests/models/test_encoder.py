import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.kernels.attention import KERNELS, register, rotate
from jaxface.models.encoder import use_attention
from jaxface.models.tree import flatten
from tiny_encoder import random_images, tiny_encoder

pytestmark = pytest.mark.usefixtures("strict_dtypes")


@pytest.mark.parametrize("shape", [(1, 16, 18, 3), (1, 18, 16, 3), (1, 16, 16, 4)])
def test_images_that_the_patch_does_not_divide_or_without_three_channels_are_refused(shape):
    with pytest.raises(UserError, match=r"expected \[B, H, W, 3\] with H and W multiples of the patch 4"):
        tiny_encoder()(jnp.zeros(shape))


def test_the_more_is_formed_again_the_less_is_kept_for_the_backward_pass():
    kept = {}
    for remat in ("none", "products", "full"):
        encoder = tiny_encoder()
        encoder.remat = remat
        arrays, structure = flatten(encoder)

        def backward(arrays, structure=structure):
            return jax.vjp(lambda arrays: structure.build(arrays)(random_images(4)), arrays)[1]

        leaves = jax.tree.leaves(jax.eval_shape(backward, arrays))
        kept[remat] = sum(math.prod(leaf.shape) for leaf in leaves)
    assert kept["none"] > 1.1 * kept["products"]  # the parameters are among what is kept
    assert kept["products"] > 1.1 * kept["full"]


def attend_in_pairs_of_rows(q, k, v, *, angles=None, causal=False):
    """As a kernel for even lengths: what stands behind the last angle is not attended to."""
    real = k.shape[-2] if angles is None else len(angles)
    if angles is not None:
        assert q.shape[-2] % 2 == 0
        angles = jnp.pad(angles, ((0, q.shape[-2] - real), (0, 0)))
        q, k = rotate(q, angles), rotate(k, angles)
    scores = q @ jnp.swapaxes(k, -1, -2) * q.shape[-1] ** -0.5
    return jax.nn.softmax(jnp.where(jnp.arange(k.shape[-2]) < real, scores, -jnp.inf)) @ v


@pytest.mark.parametrize("change", ["unrolled", "filled up"])
def test_blocks_unrolled_or_with_rows_that_fill_up_have_the_results_and_gradients_of_the_scan(change):
    encoder = tiny_encoder()

    def gradients(encoder):
        arrays, structure = flatten(encoder)
        return jax.jit(jax.value_and_grad(lambda arrays: jnp.sum(jnp.sin(structure.build(arrays)(random_images(2))))))(arrays)

    with KERNELS.temporarily():
        register("even", attend_in_pairs_of_rows, multiple=2)
        expected = gradients(encoder)
        assert encoder.hidden_states(random_images(1)).shape[-2] == 17
        if change == "unrolled":
            encoder.loop = "unrolled"
        else:
            use_attention(encoder, "even")
            assert encoder.hidden_states(random_images(1)).shape[-2] == 17
        found = gradients(encoder)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), found, expected)
