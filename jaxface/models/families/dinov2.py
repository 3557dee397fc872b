"""DINOv2 (Oquab et al. 2023, table 16) and its registers (Darcet et al. 2024).

With registers the class token has no position of its own, as timm holds these models: it is part of the token.
"""

from __future__ import annotations

from jaxface.models.config import EncoderConfig


def _vit(width: int, depth: int, heads: int, hidden: int, registers: int, gated: bool = False) -> EncoderConfig:
    return EncoderConfig(
        width,
        depth,
        heads,
        hidden,
        14,
        518,
        pool=False,
        layer_scale=True,
        registers=registers,
        class_position=not registers,
        resize="bicubic",
        rope="none",
        norm_pre=False,
        patch_bias=True,
        activation="silu" if gated else "gelu",
        gate="packed" if gated else "none",
        epsilon=1e-6,
        pixels="imagenet",
        framing="bicubic-middle",
    )


VISION = {
    f"DINOv2-{size}14" + ("-reg4" if registers else ""): _vit(*shape, registers, size == "g")
    for registers in (0, 4)
    for size, shape in {
        "S": (384, 12, 6, 1536),
        "B": (768, 12, 12, 3072),
        "L": (1024, 24, 16, 4096),
        "g": (1536, 40, 24, 4096),
    }.items()
}
