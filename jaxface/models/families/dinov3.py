"""DINOv3 (Siméoni et al. 2025, table 1 and appendix B): rotary positions of patches in -1..1, four registers, LayerScale.

The B, L and H+ that were distilled from the 7B have no biases of queries and values left (all zero): files come with them and without.
EUPE, Meta's distillation of PE and DINOv3, is of the same kind, with biases, in T, S and B.
"""

from __future__ import annotations

from dataclasses import replace

from jaxface.models.config import EncoderConfig


def _vit(width: int, depth: int, heads: int, hidden: int = 0, *, gated: bool = False, bias: bool = False, size: int = 256) -> EncoderConfig:
    return EncoderConfig(
        width,
        depth,
        heads,
        hidden or 4 * width,
        16,
        size,
        pool=False,
        layer_scale=True,
        registers=4,
        positions=False,
        rope="unit",
        norm_pre=False,
        patch_bias=True,
        qkv_bias="no key" if bias else "none",
        activation="silu" if gated else "gelu",
        gate="separate" if gated else "none",
        pixels="imagenet",
        framing="bicubic-middle",
    )


VISION = {
    "DINOv3-S16": _vit(384, 12, 6),
    "DINOv3-S+16": _vit(384, 12, 6, gated=True),
    "DINOv3-B16": _vit(768, 12, 12),
    "DINOv3-L16": _vit(1024, 24, 16),
    "DINOv3-H+16": _vit(1280, 32, 20, gated=True),
    "DINOv3-7B16": _vit(4096, 40, 32, 8192, gated=True),
    "DINOv3-S16-qkvb": _vit(384, 12, 6, bias=True),
    "DINOv3-S+16-qkvb": _vit(384, 12, 6, gated=True, bias=True),
    "DINOv3-B16-qkvb": _vit(768, 12, 12, bias=True),
    "DINOv3-L16-qkvb": _vit(1024, 24, 16, bias=True),
    "DINOv3-H+16-qkvb": _vit(1280, 32, 20, gated=True, bias=True),
    "EUPE-T16": _vit(192, 12, 3, bias=True),
    "EUPE-S16": _vit(384, 12, 6, bias=True),
    "EUPE-B16": _vit(768, 12, 12, bias=True),
    # not of the paper: small ones with all parts, for the quickstart and for tests
    "DINOv3-Mini-10-60": replace(_vit(128, 5, 4, bias=True), patch=10, image_size=60),
}
