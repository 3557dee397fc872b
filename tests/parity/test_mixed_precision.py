"""bfloat16 with the sum of blocks' branches in float32: as near to float64 as the original under torch.autocast, which adds up likewise."""

import jax
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.models.precision import precision_of
from jaxface.originals.reference import build_original, import_torch
from jaxface.weights import load_encoder
from small_models import FAMILIES, KINDS, random_images, random_tensors
from weights_convert.checkpoint import write_checkpoint

torch = import_torch()[0]


@jax.jit
def results(encoder, images):
    tokens = encoder.tokens(images)
    return tokens, encoder.pooled(tokens)


def relative(ours, exact):
    return np.linalg.norm(np.asarray(ours, np.float64) - exact) / np.linalg.norm(exact)


@pytest.mark.parametrize("kind", ["core", "lang", "DINOv3+", "OpenCLIP"])
def test_mixed_precision_comes_as_near_as_the_original_under_autocast(kind, tmp_path):
    towers = (KINDS | FAMILIES)[kind]
    tensors, images = random_tensors(towers), random_images(12, 32, 32)
    write_checkpoint(tmp_path / "model.safetensors", towers, tensors)
    original = build_original("timm", towers, tensors)
    seen = torch.from_numpy(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            theirs = [part(seen).double().numpy() for part in (original.tokens, original.vision)]
        original.modules[0].double()
        exact = [part(seen.double()).numpy() for part in (original.tokens, original.vision)]
    found = {
        name: results(load_encoder(tmp_path / "model.safetensors", **precision_of(name)._asdict()), images) for name in ("bf16", "mixed")
    }
    for ours, autocast, double in zip(found["mixed"], theirs, exact, strict=True):
        assert relative(ours, double) <= 1.15 * relative(autocast, double)
    assert found["mixed"][0].dtype == np.float32
    assert relative(found["mixed"][0], exact[0]) <= 0.8 * relative(found["bf16"][0], exact[0])


def test_an_unknown_precision_is_refused():
    with pytest.raises(UserError, match="no precision 'bf17'; known: fp32, bf16, mixed, auto"):
        precision_of("bf17")
