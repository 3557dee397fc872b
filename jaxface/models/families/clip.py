"""CLIP: OpenAI's (Radford et al. 2021, table 20), OpenCLIP's (Cherti et al. 2023) and MetaCLIP's (Xu et al. 2024) vision towers.

OpenAI's, MetaCLIP's and Apple's (DFN, Fang et al. 2023) have QuickGELU, OpenCLIP's the exact GELU: no tensor tells the two apart. Nor
does one tell that LAION-2B's L/14 was trained with pixels of mean and deviation 0.5; photos at 378 pixels are squashed.
"""

from __future__ import annotations

from dataclasses import replace

from jaxface.models.config import EncoderConfig, TextConfig


def _vit(width: int, depth: int, heads: int, hidden: int, patch: int, size: int, output: int, activation: str) -> EncoderConfig:
    return EncoderConfig(
        width,
        depth,
        heads,
        hidden,
        patch,
        size,
        pool=False,
        output=output,
        readout="class",
        resize="bicubic",
        rope="none",
        activation=activation,
        pixels="clip",
        framing="bicubic-middle",
    )


_SHAPES = {
    "B32-224": (768, 12, 12, 3072, 32, 224, 512),
    "B16-224": (768, 12, 12, 3072, 16, 224, 512),
    "L14-224": (1024, 24, 16, 4096, 14, 224, 768),
    "L14-336": (1024, 24, 16, 4096, 14, 336, 768),
    "H14-224": (1280, 32, 16, 5120, 14, 224, 1024),
    "H14-378": (1280, 32, 16, 5120, 14, 378, 1024),
    "g14-224": (1408, 40, 16, 6144, 14, 224, 1024),
    "bigG14-224": (1664, 48, 16, 8192, 14, 224, 1280),
}
_MADE = {
    "CLIP": ("quick_gelu", ("B32-224", "B16-224", "L14-224", "L14-336")),
    "OpenCLIP": ("gelu", ("B32-224", "B16-224", "L14-224", "L14-336", "H14-224", "H14-378", "g14-224", "bigG14-224")),
    "MetaCLIP": ("quick_gelu", ("B32-224", "B16-224", "L14-224", "H14-224", "bigG14-224")),
}

VISION = {f"{maker}-{size}": _vit(*_SHAPES[size], activation) for maker, (activation, sizes) in _MADE.items() for size in sizes}
VISION["OpenCLIP-H14-378"] = replace(VISION["OpenCLIP-H14-378"], framing="bicubic-squash")
VISION["DFN-H14-378"] = replace(VISION["OpenCLIP-H14-378"], activation="quick_gelu")
VISION["LAION2B-L14-224"] = replace(VISION["OpenCLIP-L14-224"], pixels="half")

_TEXTS = {"B": (512, 12, 8), "L": (768, 12, 12), "H": (1024, 24, 16), "g": (1024, 24, 16), "bigG": (1280, 32, 20)}

TEXT = {
    name: TextConfig(*_TEXTS[size], 77, config.output or 0, activation=config.activation)
    for name, config in VISION.items()
    for size in [name.split("-")[1].rstrip("0123456789")]
}
