import jax.numpy as jnp
import pytest

from jaxface.errors import UserError
from tiny_encoder import tiny_encoder

pytestmark = pytest.mark.usefixtures("strict_dtypes")


@pytest.mark.parametrize("shape", [(1, 16, 18, 3), (1, 18, 16, 3), (1, 16, 16, 4)])
def test_images_that_the_patch_does_not_divide_or_without_three_channels_are_refused(shape):
    with pytest.raises(UserError, match=r"expected \[B, H, W, 3\] with H and W multiples of the patch 4"):
        tiny_encoder()(jnp.zeros(shape))
