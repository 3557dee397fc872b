"""Counted products against the counts worked out on paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxface.models.encoder import Encoder
from jaxface.models.variants import get_variant
from jaxface.runs.costs import count_flops, encoder_flops


def test_products_in_scans_count_every_turn():
    def function(x, w):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0].sum() + (x @ w[0]).sum()

    assert count_flops(function, jnp.zeros((3, 4)), jnp.zeros((5, 4, 4))) == 6 * 2 * 3 * 4 * 4


@pytest.mark.parametrize(("variant", "gflops"), [("PE-Core-L14-336", 384.3637617), ("PE-Core-B16-224", 35.6048763)])
def test_an_encoders_products_are_those_of_the_formula(variant, gflops):
    config = get_variant(variant)
    encoder = nnx.eval_shape(lambda: Encoder(config, rngs=nnx.Rngs(0)))
    image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), np.float32)
    counted = count_flops(lambda encoder, image: encoder(image), encoder, image) / 1e9
    assert counted == pytest.approx(gflops)
    assert counted == pytest.approx(sum(encoder_flops(config).values()) / 1e9)
