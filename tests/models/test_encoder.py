import math

import jax
import jax.numpy as jnp
import pytest

from jaxface.errors import UserError
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
