"""What an encoder is given at the edges of what it takes, and how it is transformed: right, or one clear line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxface
from jaxface.adapters.low_rank import LowRank
from jaxface.errors import UserError
from jaxface.kernels.plain import derivatives
from jaxface.models.text import Text
from jaxface.models.tree import flatten
from jaxface.models.variants import TextConfig
from jaxface.weights import load_clip, save_weights
from tiny_encoder import random_images, tiny_clip, tiny_encoder

TEXT = TextConfig(width=32, depth=1, heads=4, context=6, output=24, vocabulary=40)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((16, 16, 3), np.float32), r"images of shape \(16, 16, 3\): .*: a single image is images\[None\]"),
        ([[0.5]], r"images of type list: expected an array \[B, H, W, 3\]"),
        (np.zeros((0, 16, 16, 3), np.float32), r"images of shape \(0, 16, 16, 3\)"),
        (np.zeros((1, 3, 16, 16), np.float32), r"images of shape \(1, 3, 16, 16\)"),
        (np.zeros((1, 18, 16, 3), np.float32), "multiples of the patch 4"),
        (np.zeros((1, 16, 16, 3), np.uint8), "images of uint8: expected floating numbers in -1..1"),
        (np.full((1, 16, 16, 3), 255, np.float32), r"images with values up to 255: expected -1\.\.1"),
        (np.full((1, 16, 16, 3), np.nan, np.float32), "images with values up to nan"),
    ],
)
def test_what_is_no_batch_of_normalised_images_is_one_line(images, message):
    with pytest.raises(UserError, match=message):
        tiny_encoder()(images)


def test_token_ids_beyond_the_vocabulary_are_refused_or_give_no_feature():
    text = Text(TEXT, rngs=nnx.Rngs(0))
    for ids, message in (
        ([[1, 40]], "token ids from 1 to 40: the vocabulary has 0 to 39"),
        ([[-1, 3]], "from -1 to 3"),
        ([[0.5]], "float"),
    ):
        with pytest.raises(UserError, match=message):
            text(np.array(ids))
    assert np.isnan(np.asarray(jax.jit(text)(jnp.array([[1, 40], [1, 39]])))).all(-1).tolist() == [True, False]


def test_the_scale_of_similarities_is_not_rounded(tmp_path):
    clip = tiny_clip(TEXT)
    save_weights(clip, tmp_path / "clip.safetensors")
    found = load_clip(tmp_path / "clip.safetensors", dtype=jnp.bfloat16)
    assert found.logit_scale.dtype == jnp.float32
    assert found.visual.pool.out.kernel.dtype == jnp.bfloat16
    assert float(found.logit_scale[...]) == float(clip.logit_scale[...])


@pytest.mark.parametrize("tokens", [3, 300], ids=["thin products", "the sum"])
def test_a_magnitude_of_exactly_zero_has_the_gradient_that_autodiff_gives_it(tokens):
    kernel = LowRank(jax.random.normal(jax.random.key(0), (8, 6)), 2, dora=True, rngs=nnx.Rngs(0))
    kernel.b[...] = jax.random.normal(jax.random.key(1), (2, 6))
    x = jax.random.normal(jax.random.key(2), (1, tokens, 8))
    arrays, structure = flatten(kernel)
    magnitude = arrays["magnitude"].at[3].set(0.0)

    def loss(magnitude):
        return jnp.sum(jnp.sin(1 + x @ structure.build(arrays, {"magnitude": magnitude})))

    got, value = jax.jit(jax.grad(loss))(magnitude), jax.jit(lambda magnitude: loss(magnitude))
    with derivatives():
        assert np.isclose(float(loss(magnitude)), float(jax.jit(loss)(magnitude)))
    step = 1e-2 * np.eye(6, dtype=np.float32)[3]
    numeric = (value(magnitude + step) - value(magnitude - step)) / 2e-2
    assert abs(float(got[3] - numeric)) < 1e-2 * abs(float(numeric))


def test_derivatives_of_any_order_are_jaxs_own_where_they_are_asked_for():
    encoder = jaxface.adapt(tiny_encoder(), "dora", rank=2)
    images, direction = random_images(2), random_images(4)[2:]
    value = jax.jit(encoder)(images)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jit(lambda x: jax.jvp(encoder, (x,), (direction,)))(images)

    def along(t):
        return jnp.sum(encoder(images + t * direction))

    def pulled(t):
        return jnp.sum(jax.grad(lambda x: jnp.sum(encoder(x)))(images + t * direction) * direction)

    with derivatives():
        again, tangent = jax.jit(lambda x: jax.jvp(encoder, (x,), (direction,)))(images)
        curve = jax.jit(jax.grad(jax.grad(along)))(0.0)
    assert np.allclose(again, value, atol=1e-5)
    below, here, above = jax.jit(lambda ts: jax.lax.map(pulled, ts))(jnp.array([-1e-2, 0.0, 1e-2]))
    assert np.isclose(float(here), float(tangent.sum()), rtol=1e-4)
    slope = (float(above) - float(below)) / 2e-2
    assert abs(float(curve) - slope) < 2e-2 * abs(float(curve)) + 1e-2


@pytest.mark.parametrize("method", ["lp", "lora", "mtlora"])
def test_any_batch_is_exported_with_the_automatic_choice_of_kernels(method):
    encoder = tiny_encoder() if method == "lp" else jaxface.adapt(tiny_encoder(), method, rank=2)
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("batch, 16, 16, 3"), jnp.float32)
    call = jax.export.deserialize(jax.export.export(jax.jit(encoder))(shape).serialize()).call
    for count in (1, 3):
        assert np.allclose(call(random_images(count)), jax.jit(encoder)(random_images(count)), atol=1e-5)
