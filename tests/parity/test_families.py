"""The families beside the Perception Encoder against timm, on small configurations with every parameter random."""

import jax
import numpy as np
import pytest
from parity.test_parity import assert_as_exact_as_the_original, relative_error, run

from jaxface.models.tree import arrays_of
from jaxface.originals.reference import build_original, import_torch
from jaxface.weights import load_encoder
from small_models import FAMILIES, random_images, random_tensors
from weights_convert.checkpoint import convert, write_checkpoint

torch = import_torch()[0]
FEW = {"xla_backend_optimization_level": 0}


def small_encoder(folder, kind, **options):
    write_checkpoint(folder / "model.safetensors", FAMILIES[kind], random_tensors(FAMILIES[kind]))
    return load_encoder(folder / "model.safetensors", **options)


@jax.jit
def run_ours(encoder, images):
    states = encoder.hidden_states(images)
    tokens = states[-1] if encoder.norm_post is None else encoder.norm_post(states[-1])
    return states[1:], tokens, encoder.pooled(tokens)


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_block_the_tokens_and_the_features_equal_timms_at_any_size(kind, tmp_path):
    encoder, towers = small_encoder(tmp_path, kind), FAMILIES[kind]
    original = build_original("timm", towers, random_tensors(towers))
    side = towers.vision.image_size
    results = {}
    for size in ((side, side), (24, 40)):
        images = random_images(8, *size)
        original.modules[0].float()
        single = run(original, images, torch.float32)
        original.modules[0].double()
        exact = run(original, images, torch.float64)
        states, tokens, features = run_ours(encoder, images)
        for ours, theirs, double in zip([*states, tokens, features], single, exact, strict=True):
            assert_as_exact_as_the_original(ours, theirs, double)
        results[size] = exact[-1]
    half = small_encoder(tmp_path, kind, dtype="bfloat16")
    images = random_images(8, side, side)
    assert relative_error(jax.jit(half.__call__, compiler_options=FEW)(images), results[side, side]) <= 2e-2


@pytest.mark.parametrize("kind", FAMILIES)
def test_timms_files_are_recognised_and_come_back_to_the_byte(kind, tmp_path):
    towers = FAMILIES[kind]
    theirs, ours, again = (tmp_path / name for name in ("timm.safetensors", "ours.safetensors", "again.safetensors"))
    write_checkpoint(theirs, towers, random_tensors(towers), layout="timm")
    convert(theirs, ours)
    convert(ours, again, layout="timm")
    assert theirs.read_bytes() == again.read_bytes()
    arrays = (arrays_of(load_encoder(path)).values() for path in (ours, theirs))
    assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(*arrays, strict=True))
