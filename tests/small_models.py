"""Small models of every kind in the family, with every parameter random, and images for them: the same numbers on every machine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from jaxface.models.variants import VARIANTS, EncoderConfig, TextConfig
from weights_convert.towers import Towers

OPTIMISED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
"""Compiler options that undo the hurry of `conftest.py`: users' programs are compiled so, and fused and reordered as ours are not."""

TEXT = TextConfig(width=64, depth=2, heads=4, context=12, output=48, vocabulary=96)

KINDS: dict[str, Towers] = {
    "core": Towers(EncoderConfig(64, 3, 4, 256, 8, 32, output=48), TEXT),
    "core without class token, MLP not 4x": Towers(EncoderConfig(64, 2, 4, 372, 8, 32, class_token=False, output=48), TEXT),
    "core with heads of 24 channels": Towers(EncoderConfig(96, 2, 4, 384, 4, 20, output=40, pool_heads=4)),
    "lang": Towers(EncoderConfig(64, 2, 2, 256, 8, 32, pool=False, layer_scale=True, norm_post=False)),
    "lang without class token": Towers(
        EncoderConfig(64, 2, 4, 372, 8, 32, class_token=False, pool=False, layer_scale=True, norm_post=False)
    ),
    "spatial": Towers(EncoderConfig(64, 2, 4, 256, 8, 32, pool=False, norm_post=False)),
}


def _small(variant: str, **others) -> Towers:
    """A variant made small: all that sets its family apart stays."""
    config = VARIANTS[variant]
    sizes = {"width": 64, "depth": 2, "heads": 4, "mlp_width": 256, "patch": 8, "image_size": 32, "pool_heads": 4}
    return Towers(replace(config, **sizes | others, output=config.output and 48))


FAMILIES: dict[str, Towers] = {
    "DINOv3": _small("DINOv3-S16"),
    "DINOv3 with biases": _small("DINOv3-S16-qkvb", depth=3),
    "DINOv3+": _small("DINOv3-S+16-qkvb", mlp_width=168),
    "DINOv2": _small("DINOv2-S14"),
    "DINOv2 with registers": _small("DINOv2-S14-reg4"),
    "DINOv2 g": _small("DINOv2-g14-reg4", mlp_width=168),
    "CLIP": _small("CLIP-B16-224"),
    "OpenCLIP": _small("OpenCLIP-B16-224"),
    "SigLIP": _small("SigLIP-SO400M14-224", mlp_width=232, pool_mlp_width=232),
}
"""Of every kind beside the Perception Encoder."""


def random_tensors(towers: Towers, seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor of the towers by our name, float32: none of them zero, one, or alike."""
    random = np.random.RandomState(seed)  # its stream is fixed for good, which Generator's is not
    spreads = {".kernel": None, ".scale": 0.2, "scale1": 0.2, "scale2": 0.2}
    tensors = {}
    for name, shape in towers.shapes().items():
        spread = next((value for end, value in spreads.items() if name.endswith(end)), 0.3)
        centre = 1.0 if name.endswith(".scale") else 0.5 if "scale" in name else 0.0
        values = random.standard_normal(shape) * (shape[0] ** -0.5 if spread is None else spread) + centre
        tensors[name] = np.asarray(values, np.float32)
    return tensors


def random_images(count: int, height: int, width: int, seed: int = 1) -> np.ndarray:
    """[count, height, width, 3] in -1..1, float32."""
    return np.random.RandomState(seed).uniform(-1, 1, (count, height, width, 3)).astype(np.float32)


def random_ids(count: int, towers: Towers, seed: int = 2) -> np.ndarray:
    """Token ids [count, context] of texts of several lengths: start, words, end, zeros."""
    text = towers.text
    ids = np.random.RandomState(seed).randint(1, text.vocabulary - 2, (count, text.context)).astype(np.int32)
    for row, end in zip(ids, np.linspace(2, text.context - 1, count).astype(int), strict=True):
        row[0], row[end], row[end + 1 :] = text.vocabulary - 2, text.vocabulary - 1, 0
    return ids
