"""Counted products against the counts worked out on paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxface.adapters.adapt import adapt
from jaxface.adapters.methods import get_method
from jaxface.models.encoder import Encoder, use_attention
from jaxface.models.heads import Classifier
from jaxface.models.variants import get_variant
from jaxface.runs.costs import attention_flops, count_flops, encoder_flops, run_costs
from tiny_encoder import tiny_encoder


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


@pytest.mark.parametrize(("method", "copies"), [("dora", 1), ("mtlora", 3), ("ap_per_task", 3)])
def test_what_each_task_has_of_its_own_counts_once_for_each_also_in_attention(method, copies):
    options = {"rank": 2, "num_tasks": 3}
    encoder = adapt(tiny_encoder(), method, **{name: options[name] for name in get_method(method).options if name in options})
    n, d = 17, 32
    own_block = copies if method == "mtlora" else 1
    by_hand = (2 + own_block) * 4 * n * n * d + copies * 4 * n * d
    assert attention_flops(encoder, 16) == by_hand
    classifier = Classifier(encoder, {"age": 9, "gender": 2, "emotion": 7}, rngs=nnx.Rngs(0))
    gflops = run_costs(classifier, 0, 16)["gflops"]
    assert gflops["all products"] - gflops["linear"] == pytest.approx(by_hand / 1e9)
    use_attention(encoder, "blocked")
    assert run_costs(classifier, 0, 16)["gflops"] == gflops  # whichever kernel runs
