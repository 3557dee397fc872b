"""The Perception Encoder family, one row each (Bolya et al. 2025, "Perception Encoder", tables 1 and 16)."""

from __future__ import annotations

from typing import Annotated

from jaxface.errors import UserError
from jaxface.ranges import Range, ranged
from jaxface.registry import Registry

Size = Annotated[int, Range(1, 2**24)]
"""Of an axis of an array."""
Depth = Annotated[int, Range(1, 1000)]
"""Number of blocks."""


@ranged("encoder ")
class EncoderConfig:
    """The shape of a vision tower; every value can be read off a checkpoint's tensors but the head counts and the image size.

    Attributes:
      width: channels D of a token.
      depth: number of transformer blocks.
      heads: attention heads of a block; width / heads is a multiple of 4 (two axes of rotated pairs).
      mlp_width: hidden channels of a block's MLP.
      patch: side of a patch in pixels.
      image_size: side in pixels that the absolute positions were trained for.
      class_token: whether a learned token stands before the patches.
      pool: whether attention pooling reduces the tokens to one feature.
      layer_scale: whether each residual branch has a learned gain per channel.
      norm_post: whether the tokens are normalised after the last block.
      output: channels of the projected feature, or None for no projection.
      pool_heads: attention heads of the pool.
      output_bias: whether the projection has a bias: none of the family's has, a trained classifier in its place does.
    """

    width: Size
    depth: Depth
    heads: Size
    mlp_width: Size
    patch: Size
    image_size: Size
    class_token: bool = True
    pool: bool = True
    layer_scale: bool = False
    norm_post: bool = True
    output: Size | None = None
    pool_heads: Size = 8
    output_bias: bool = False

    def __post_init__(self) -> None:
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise UserError(f"width {self.width} over {self.heads} heads: the width of a head must be a multiple of 4")
        if self.pool and self.width % self.pool_heads:
            raise UserError(f"width {self.width} is not a multiple of the pool's {self.pool_heads} heads")
        if self.image_size % self.patch:
            raise UserError(f"image size {self.image_size} is not a multiple of the patch {self.patch}")

    @property
    def grid(self) -> int:
        """Patches along one side at the native image size."""
        return self.image_size // self.patch

    @property
    def features(self) -> int:
        """Channels of what the encoder returns."""
        return self.output or self.width


@ranged("text tower ")
class TextConfig:
    """The shape of a text tower: a causal transformer over byte-pair tokens."""

    width: Size
    depth: Depth
    heads: Size
    context: Size
    output: Size
    vocabulary: Size = 49_408

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"width {self.width} is not a multiple of the text tower's {self.heads} heads")


def _core(width: int, depth: int, heads: int, mlp: int, patch: int, image: int, output: int, class_token: bool = True) -> EncoderConfig:
    return EncoderConfig(width, depth, heads, mlp, patch, image, class_token, output=output)


def _lang(width: int, depth: int, heads: int, mlp: int, class_token: bool) -> EncoderConfig:
    return EncoderConfig(width, depth, heads, mlp, 14, 448, class_token, pool=False, layer_scale=True, norm_post=False)


def _spatial(width: int, depth: int, heads: int, patch: int, image: int) -> EncoderConfig:
    return EncoderConfig(width, depth, heads, 4 * width, patch, image, pool=False, norm_post=False)


VARIANTS: Registry[EncoderConfig] = Registry(
    "encoder",
    {
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
    },
)
get_variant = VARIANTS.get

TEXT_VARIANTS: Registry[TextConfig] = Registry(
    "text tower",
    {
        "PE-Core-G14-448": TextConfig(1280, 24, 20, 72, 1280),
        "PE-Core-L14-336": TextConfig(1024, 24, 16, 32, 1024),
        "PE-Core-B16-224": TextConfig(1024, 24, 16, 32, 1024),
        "PE-Core-S16-384": TextConfig(512, 12, 8, 32, 512),
        "PE-Core-T16-384": TextConfig(512, 12, 8, 32, 512),
    },
)
