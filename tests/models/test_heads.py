"""Heads: batch norm against torch's, and dropout that is drawn for the whole batch and for each task anew."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxface.errors import UserError
from jaxface.exports.onnx import build
from jaxface.models.encoder import normalize_images, random_encoder
from jaxface.models.heads import TOKENS, BatchNorm, Classifier, Head, Training
from jaxface.models.tree import arrays_of, flatten
from jaxface.originals.reference import import_torch
from small_models import KINDS
from tiny_encoder import TINY, tiny_encoder

pytestmark = pytest.mark.usefixtures("strict_dtypes")

torch, *_ = import_torch()
WIDTH = 6


def batches():
    """Batches of several sizes, their channels far from zero mean and unit variance."""
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(size, WIDTH)) * np.arange(1, WIDTH + 1) + 3).astype(np.float32) for size in (8, 4, 12)]


@pytest.mark.parametrize("devices", [1, 2])
def test_batch_norm_and_its_running_statistics_are_torchs_of_the_whole_batch(devices):
    theirs, ours = torch.nn.BatchNorm1d(WIDTH), BatchNorm(WIDTH)
    rng = np.random.default_rng(1)
    for mine, parameter in ((ours.scale, theirs.weight), (ours.bias, theirs.bias)):
        mine[...] = jax.device_put(rng.normal(size=WIDTH).astype(np.float32))
        parameter.data = torch.from_numpy(np.array(mine[...]))
    arrays, structure = flatten(ours)

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0), axis_name="devices")
    def train(arrays, x):
        norm = structure.build(arrays)
        return norm(x, Training(jax.random.key(0), "devices")), arrays_of(norm)

    for x in batches():
        y, every = train(arrays, x.reshape(devices, -1, WIDTH))
        arrays = {name: np.asarray(leaf)[0] for name, leaf in every.items()}
        np.testing.assert_allclose(y.reshape(-1, WIDTH), theirs(torch.from_numpy(x)).detach(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(arrays["mean"], theirs.running_mean, rtol=1e-5)
        np.testing.assert_allclose(arrays["variance"], theirs.running_var, rtol=1e-5)
    x = batches()[0]
    np.testing.assert_allclose(
        jax.jit(lambda arrays, x: structure.build(arrays)(x, None))(arrays, x),
        theirs.eval()(torch.from_numpy(x)).detach(),
        rtol=1e-4,
        atol=1e-5,
    )


def test_batch_norm_of_one_image_is_refused_while_training_on_one_device_and_counted_over_many():
    norm, training = BatchNorm(WIDTH), Training(jax.random.key(0))
    assert norm(jnp.ones((1, WIDTH)), None).shape == (1, WIDTH)
    with pytest.raises(UserError, match="batch norm of one image: expected at least 2"):
        norm(jnp.ones((1, WIDTH)), training)
    arrays, structure = flatten(norm)
    across = training._replace(axis_name="devices")
    two = jax.vmap(lambda x: structure.build(arrays)(x, across), axis_name="devices")(jnp.array([[[1.0] * WIDTH], [[5.0] * WIDTH]]))
    np.testing.assert_allclose(two[:, 0, 0], [-1, 1], rtol=1e-4)


def dropped(axis_name=None):
    """What dropout leaves of ones [B, D], by task: heads that give back their features."""
    tasks = dict.fromkeys(("age", "gender"), TINY.features)
    model = Classifier(tiny_encoder(), tasks, deep=False, batch_norm=False, dropout=0.4, rngs=nnx.Rngs(0))
    for head in model.heads.values():
        head.out.kernel = nnx.Param(np.eye(TINY.features, dtype=np.float32))
        head.out.bias = nnx.Param(np.zeros(TINY.features, np.float32))
    return lambda features: model.classify(features, Training(jax.random.key(3), axis_name))


@pytest.mark.parametrize("output", ["classes", "labels", "number"])
def test_a_new_head_is_spread_as_torchs_linear_layer(output):
    head, theirs = Head(400, 50, output=output, rngs=nnx.Rngs(0)), torch.nn.Linear(400, 50)
    for mine, parameter in ((head.out.kernel, theirs.weight), (head.out.bias, theirs.bias), (head.hidden.kernel, theirs.weight)):
        assert np.abs(mine[...]).max() <= 400**-0.5
        assert np.std(mine[...]) == pytest.approx(float(parameter.detach().std()), rel=0.25)


def test_each_task_drops_out_values_of_its_own():
    kept = jax.jit(dropped())(np.ones((50, TINY.features), np.float32))
    age, gender = (np.asarray(kept[task]) for task in ("age", "gender"))
    assert set(np.unique(age)) == {0, np.float32(1 / 0.6)}
    both = ((age == 0) & (gender == 0)).mean()
    assert both == pytest.approx(0.4**2, abs=0.04)  # drawn independently


def test_a_sample_of_the_batch_keeps_its_mask_on_whichever_device_it_is():
    features = np.ones((8, TINY.features), np.float32)
    whole = jax.jit(dropped())(features)
    parts = jax.jit(jax.vmap(dropped("devices"), axis_name="devices"))(features.reshape(4, 2, -1))
    for task, kept in whole.items():
        assert np.array_equal(parts[task].reshape(kept.shape), kept)


def test_heads_read_the_choice_of_tokens_of_an_encoder_without_a_pool_and_so_does_onnx():
    import onnxruntime

    encoder = random_encoder(KINDS["spatial"].vision, 0)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    tokens = np.asarray(jax.jit(encoder)(normalize_images(jnp.asarray(images))), np.float64)
    assert tokens.shape == (2, 1 + 16, 64)
    wanted = {"patches": tokens[:, 1:].mean(1), "class": tokens[:, 0], "all": tokens.mean(1)}
    wanted["both"] = np.concatenate([wanted["class"], wanted["patches"]], -1)
    assert set(wanted) == set(TOKENS)
    for choice, features in wanted.items():
        width = features.shape[-1]
        model = Classifier(encoder, {"gender": width}, deep=False, batch_norm=False, tokens=choice, rngs=nnx.Rngs(0))
        model.heads["gender"].out.kernel = nnx.Param(jax.device_put(np.eye(width, dtype=np.float32)))
        model.heads["gender"].out.bias = nnx.Param(jax.device_put(np.zeros(width, np.float32)))
        answer = jax.jit(lambda tokens, model=model: model.classify(model.reduced(tokens))["gender"])
        np.testing.assert_allclose(answer(tokens.astype(np.float32)), features, atol=1e-5)
        session = onnxruntime.InferenceSession(build(model, 32, {"gender": width}).SerializeToString())
        np.testing.assert_allclose(session.run(None, {"images": images})[0], features, atol=1e-5)


@pytest.mark.parametrize(("kind", "has"), [("core", "has a pool"), ("lang without class token", "has no class token")])
def test_a_class_token_is_asked_only_of_an_encoder_that_gives_one(kind, has):
    encoder = nnx.eval_shape(lambda: random_encoder(KINDS[kind].vision, 0))
    with pytest.raises(UserError, match=f"head.tokens class: the heads' encoder {has}"):
        Classifier(encoder, {"gender": 2}, tokens="class", rngs=nnx.Rngs(0))
    assert Classifier(encoder, {"gender": 2}, rngs=nnx.Rngs(0)).tokens == "patches"
