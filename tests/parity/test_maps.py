"""Attention maps: those that are computed with, equal to the original's, and laid over photos patch by patch."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.originals.certificate import certify
from jaxface.originals.maps import maps_pair, worst_first
from jaxface.originals.reference import build_original
from jaxface.report.maps import draw_grid, maps_columns, on_grid
from jaxface.weights import load_encoder
from small_models import FAMILIES, KINDS, random_images, random_tensors
from weights_convert.checkpoint import write_checkpoint
from weights_convert.towers import Towers


@pytest.mark.parametrize("kind", ["core with heads of 24 channels", "DINOv3"])  # the second has registers, and halves that turn
def test_maps_equal_timms_and_are_as_exact(kind, tmp_path):
    towers = Towers(replace((KINDS | FAMILIES)[kind].vision, depth=1))
    tensors, size = random_tensors(towers), towers.vision.image_size
    write_checkpoint(tmp_path / "small.safetensors", towers, tensors)
    encoder, images = load_encoder(tmp_path / "small.safetensors", config=towers), random_images(2, size, size)
    found = certify(maps_pair(encoder, build_original("timm", towers, tensors), images))
    assert found.verdict == "equal"
    names = [layer.name for layer in found.layers]
    assert names == [*(f"blocks.{i}.attn.map" for i in range(towers.vision.depth)), *(["pool.map"] if towers.vision.pool else [])]
    last = jax.eval_shape(lambda encoder, images: encoder.attention_maps(images, [-1])[0], encoder, jnp.asarray(images))
    tokens = towers.vision.prefix + towers.vision.grid**2
    assert last.shape == (2, towers.vision.heads, tokens, tokens)
    with pytest.raises(UserError, match=r"blocks \[7\]: the encoder has blocks 0 to"):
        encoder.attention_maps(images, [7])


def test_maps_stand_over_the_patches_that_they_are_of():
    config, size = FAMILIES["DINOv3"].vision, 32
    tokens = np.zeros((1, config.prefix + 16, 3))
    tokens[0, config.prefix + 6] = 1  # the second row's third patch
    assert np.argwhere(on_grid(tokens, config, size, size)[0, ..., 0]).tolist() == [[1, 2]]
    weights = np.full((1, 2, *[config.prefix + 16] * 2), 0.01)
    weights[0, :, 0, config.prefix + 6] = 0.9
    photos = np.full((1, size, size, 3), 128, np.uint8)
    columns = maps_columns(photos, {"block": weights}, config)
    bright = columns["last block, class token"][0].astype(int).sum(-1)
    row, column = np.unravel_index(bright.argmax(), bright.shape)
    assert (row // 8, column // 8) == (1, 2)
    assert len(draw_grid({"photo": list(photos), **columns}).axes) == 2


def test_images_whose_maps_are_furthest_apart_come_first():
    ours = {"blocks.0.attn.map": np.zeros((3, 2, 4, 4)), "tokens": np.zeros((3, 4, 8))}
    theirs = {"blocks.0.attn.map": np.zeros((3, 2, 4, 4)), "tokens": np.ones((3, 4, 8))}
    theirs["blocks.0.attn.map"][1, 0, 2, 2], theirs["blocks.0.attn.map"][2, 1, 0, 0] = 0.1, -0.2
    assert worst_first(ours, theirs) == [2, 1, 0]
