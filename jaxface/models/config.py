"""What sets one encoder apart from another, as values: no family is named where an encoder computes."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from jaxface.data.framing import FRAMINGS, PLAIN
from jaxface.errors import UserError
from jaxface.models.rope import ROPES
from jaxface.ranges import Known, Range, Word, ranged
from jaxface.registry import Registry

Size = Annotated[int, Range(1, 2**24)]
"""Of an axis of an array."""
Depth = Annotated[int, Range(1, 1000)]
"""Number of blocks."""
Entry = Annotated[str, Word(r"\w[\w-]*", "the name of an entry")]
"""Looked up where the module is made: what it names is no part of a shape."""
Epsilon = Annotated[float, Range(above=0, high=0.1)]
"""What layer norms add to the variance."""

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation of red, green and blue in 0..1."""
PIXELS: Registry[Statistics] = Registry(
    "normalisation of pixels",
    {
        "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    },
)
"""What an encoder was trained with; its images come in -1..1 all the same, and it normalises them itself."""


@ranged("encoder ")
class EncoderConfig:
    """The shape of a vision tower and what it computes with. What follows `output_bias` is, as it stands, a Perception Encoder's.

    Attributes:
      width: channels D of a token.
      depth: number of transformer blocks.
      heads: attention heads of a block; with rotary positions width / heads is a multiple of 4 (two axes of rotated pairs).
      mlp_width: hidden channels of a block's MLP.
      patch: side of a patch in pixels.
      image_size: side in pixels that the absolute positions were trained for.
      class_token: whether a learned token stands before the patches.
      pool: whether attention pooling reduces the tokens to one feature.
      layer_scale: whether each residual branch has a learned gain per channel.
      norm_post: whether the tokens are normalised after the last block.
      output: channels of the projected feature, or None for no projection.
      pool_heads: attention heads of the pool.
      output_bias: whether the projection has a bias: none of the published ones has, a trained classifier in its place does.
      pool_mlp_width: hidden channels of the pool's MLP, or None for 4 times the width.
      readout: without a pool, what it returns (or projects): all tokens ("tokens"), the class token ("class"), or the patches' mean
        ("mean"); one of `jaxface.models.pool.READOUTS`.
      registers: learned tokens between the class token and the patches.
      positions: whether the tokens have learned absolute positions.
      class_position: whether the class token has one, too.
      resize: how absolute positions go to another grid, one of `jaxface.models.positions.RESIZE`.
      rope: the kind of rotary positions, one of `jaxface.models.rope.ROPES`, or "none".
      norm_pre: whether the tokens are normalised before the first block.
      patch_bias: whether the patch embedding has a bias.
      qkv_bias: whether queries, keys and values have biases: all, all but the keys, or none.
      activation: of the MLPs, one of `jaxface.models.layers.ACTIVATIONS`.
      gate: whether it is multiplied by a second linear layer's result (SwiGLU), which has a kernel of its own or shares one ("packed").
      epsilon: of the layer norms.
      pixels: how pixels are normalised, one of `PIXELS`.
      framing: how pictures come to its size, one of `jaxface.data.framing.FRAMINGS`.
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
    pool_mlp_width: Size | None = None
    readout: Entry = "tokens"
    registers: Annotated[int, Range(0, 1024)] = 0
    positions: bool = True
    class_position: bool = True
    resize: Entry = "bilinear"
    rope: Annotated[str, Known(ROPES, "none")] = "axial"
    norm_pre: bool = True
    patch_bias: bool = False
    qkv_bias: Literal["all", "no key", "none"] = "all"
    activation: Entry = "gelu"
    gate: Literal["none", "separate", "packed"] = "none"
    epsilon: Epsilon = 1e-5
    pixels: Annotated[str, Known(PIXELS)] = "half"
    framing: Annotated[str, Known(FRAMINGS)] = PLAIN

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"width {self.width} is not a multiple of the {self.heads} heads")
        if self.rope != "none" and (self.width // self.heads) % 4:
            raise UserError(f"width {self.width} over {self.heads} heads: the width of a head must be a multiple of 4")
        if self.pool and self.width % self.pool_heads:
            raise UserError(f"width {self.width} is not a multiple of the pool's {self.pool_heads} heads")
        if self.image_size % self.patch:
            raise UserError(f"image size {self.image_size} is not a multiple of the patch {self.patch}")
        if self.readout == "class" and not self.class_token:
            raise UserError("readout class: the encoder has no class token")

    @property
    def grid(self) -> int:
        """Patches along one side at the native image size."""
        return self.image_size // self.patch

    @property
    def prefix(self) -> int:
        """Tokens before the patches."""
        return self.class_token + self.registers

    @property
    def placed(self) -> int:
        """Tokens before the patches that have an absolute position: the class token, or none."""
        return int(self.positions and self.class_token and self.class_position)

    @property
    def pool_hidden(self) -> int:
        """Hidden channels of the pool's MLP."""
        return self.pool_mlp_width or 4 * self.width

    @property
    def features(self) -> int:
        """Channels of what the encoder returns."""
        return self.output or self.width

    def to_json(self) -> dict[str, Any]:
        """Its values by name, the Perception Encoder's in short: what other families brought is left out where it is as usual."""
        fields = dataclasses.fields(self)
        found = {field.name: value for field in fields if (value := getattr(self, field.name)) != field.default or field.name in FIRST}
        return found if set(found) <= set(FIRST) else found | {"framing": self.framing}


FIRST = tuple(field.name for field in dataclasses.fields(EncoderConfig))[:13]
"""The fields that every description of an encoder has."""


@ranged("text tower ")
class TextConfig:
    """The shape of a text tower, a transformer over tokens. What follows `vocabulary` is, as it stands, a Perception Encoder's and CLIP's.

    Attributes:
      context: tokens of a text at most.
      output: channels of the projected feature.
      mlp_width: hidden channels of a block's MLP, or None for 4 times the width.
      activation: of the MLPs, one of `jaxface.models.layers.ACTIVATIONS`.
      epsilon: of the layer norms.
      causal: whether a token attends to those before it alone.
      last: whether the feature stands at the last token of the context, not at the one of the largest id, the end of the text.
      output_bias: whether the projection has a bias.
      logit_bias: whether the two towers' similarities have a learned offset beside their scale.
    """

    width: Size
    depth: Depth
    heads: Size
    context: Size
    output: Size
    vocabulary: Size = 49_408
    mlp_width: Size | None = None
    activation: Entry = "gelu"
    epsilon: Epsilon = 1e-5
    causal: bool = True
    last: bool = False
    output_bias: bool = False
    logit_bias: bool = False

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"width {self.width} is not a multiple of the text tower's {self.heads} heads")

    @property
    def qkv_bias(self) -> str:
        """As an encoder's; of all text towers the same, as is `gate`."""
        return "all"

    @property
    def gate(self) -> str:
        return "none"

    @property
    def hidden(self) -> int:
        """Hidden channels of a block's MLP."""
        return self.mlp_width or 4 * self.width

    def to_json(self) -> dict[str, Any]:
        """Its values by name; what CLIP's towers do not differ in is left out where it is as usual."""
        fields = dataclasses.fields(self)
        return {f.name: value for i, f in enumerate(fields) if (value := getattr(self, f.name)) != f.default or i < 6}
