"""SigLIP (Zhai et al. 2023) and SigLIP 2 (Tschannen et al. 2025): no class token, an attention pool with an MLP, tanh GELU.

The originals compute the tanh form of GELU everywhere; timm takes the exact one for B/16, L and so400m/14.
"""

from __future__ import annotations

from jaxface.models.config import EncoderConfig, TextConfig


def _vit(width: int, depth: int, heads: int, hidden: int, patch: int, size: int) -> EncoderConfig:
    return EncoderConfig(
        width,
        depth,
        heads,
        hidden,
        patch,
        size,
        class_token=False,
        pool_heads=heads,
        pool_mlp_width=None if hidden == 4 * width else hidden,
        resize="bicubic",
        rope="none",
        norm_pre=False,
        patch_bias=True,
        activation="gelu_tanh",
        epsilon=1e-6,
        framing="bicubic-squash",
    )


_SHAPES = {
    "B32": (768, 12, 12, 3072, 32),
    "B16": (768, 12, 12, 3072, 16),
    "L16": (1024, 24, 16, 4096, 16),
    "SO400M14": (1152, 27, 16, 4304, 14),
    "SO400M16": (1152, 27, 16, 4304, 16),
    "gopt16": (1536, 40, 16, 6144, 16),
}
_SIZES = {
    "SigLIP": {"B16": (224, 256, 384, 512), "L16": (256, 384), "SO400M14": (224, 378), "SO400M16": (256,)},
    "SigLIP2": {
        "B32": (256,),
        "B16": (224, 256, 384, 512),
        "L16": (256, 384, 512),
        "SO400M14": (224, 378),
        "SO400M16": (256, 384, 512),
        "gopt16": (256, 384),
    },
}

VISION = {
    f"{maker}-{shape}-{size}": _vit(*_SHAPES[shape], size)
    for maker, shapes in _SIZES.items()
    for shape, sizes in shapes.items()
    for size in sizes
} | {
    # not of the papers: a small one with all parts, for the quickstart and for tests
    "SigLIP-Mini-10-60": _vit(128, 5, 4, 512, 10, 60),
}


def _text(maker: str, shape: str, width: int) -> TextConfig:
    """As wide as the vision tower, but gopt's, which is so400m's; in 64 tokens of a vocabulary of sentence pieces."""
    own, depth, heads, hidden, _ = _SHAPES["SO400M16" if shape == "gopt16" else shape]
    words = 256_000 if maker == "SigLIP2" else 250_000 if shape == "SO400M16" else 32_000
    hidden = None if hidden == 4 * own else hidden
    rules = {"activation": "gelu_tanh", "epsilon": 1e-6, "causal": False, "last": True, "output_bias": True, "logit_bias": True}
    return TextConfig(own, depth, heads, 64, width, words, hidden, **rules)


TEXT = {
    f"{maker}-{shape}-{size}": _text(maker, shape, _SHAPES[shape][0])
    for maker, shapes in _SIZES.items()
    for shape, sizes in shapes.items()
    for size in sizes
}
