"""The Perception Encoder family (Bolya et al. 2025, "Perception Encoder", tables 1 and 16)."""

from __future__ import annotations

from jaxface.models.config import EncoderConfig, TextConfig


def _core(width: int, depth: int, heads: int, mlp: int, patch: int, image: int, output: int, class_token: bool = True) -> EncoderConfig:
    return EncoderConfig(width, depth, heads, mlp, patch, image, class_token, output=output)


def _lang(width: int, depth: int, heads: int, mlp: int, class_token: bool) -> EncoderConfig:
    return EncoderConfig(width, depth, heads, mlp, 14, 448, class_token, pool=False, layer_scale=True, norm_post=False)


def _spatial(width: int, depth: int, heads: int, patch: int, image: int) -> EncoderConfig:
    return EncoderConfig(width, depth, heads, 4 * width, patch, image, pool=False, norm_post=False)


VISION = {
    "PE-Core-G14-448": _core(1536, 50, 16, 8960, 14, 448, 1280, class_token=False),
    "PE-Core-L14-336": _core(1024, 24, 16, 4096, 14, 336, 1024),
    "PE-Core-B16-224": _core(768, 12, 12, 3072, 16, 224, 1024),
    "PE-Core-S16-384": _core(384, 12, 6, 1536, 16, 384, 512),
    "PE-Core-T16-384": _core(192, 12, 3, 768, 16, 384, 512),
    "PE-Lang-G14-448": _lang(1536, 47, 16, 8960, class_token=False),
    "PE-Lang-L14-448": _lang(1024, 23, 16, 4096, class_token=True),
    "PE-Lang-G14-448-Tiling": _lang(1536, 47, 16, 8960, class_token=False),
    "PE-Lang-L14-448-Tiling": _lang(1024, 23, 16, 4096, class_token=True),
    "PE-Spatial-G14-448": EncoderConfig(1536, 50, 16, 8960, 14, 448, class_token=False, pool=False, layer_scale=True, norm_post=False),
    "PE-Spatial-L14-448": _spatial(1024, 24, 16, 14, 448),
    "PE-Spatial-B16-512": _spatial(768, 12, 12, 16, 512),
    "PE-Spatial-S16-512": _spatial(384, 12, 6, 16, 512),
    "PE-Spatial-T16-512": _spatial(192, 12, 3, 16, 512),
    # not of the paper: the smallest PE with all its parts, for the quickstart and for tests
    "PE-Mini-10-60": EncoderConfig(128, 5, 4, 512, 10, 60, output=128, pool_heads=4),
}

TEXT = {
    "PE-Core-G14-448": TextConfig(1280, 24, 20, 72, 1280),
    "PE-Core-L14-336": TextConfig(1024, 24, 16, 32, 1024),
    "PE-Core-B16-224": TextConfig(1024, 24, 16, 32, 1024),
    "PE-Core-S16-384": TextConfig(512, 12, 8, 32, 512),
    "PE-Core-T16-384": TextConfig(512, 12, 8, 32, 512),
}
