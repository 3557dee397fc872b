"""The shape of a model: which tensors its towers have."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Annotated

from jaxface.bounded import parse_json
from jaxface.errors import UserError
from jaxface.models.config import EncoderConfig, TextConfig
from jaxface.models.variants import VARIANTS
from jaxface.ranges import Range, ranged
from weights_convert.layouts import LOGIT_BIAS, LOGIT_SCALE

Shapes = dict[str, tuple[int, ...]]
CONFIG = "config"
"""The key of a safetensors file's metadata under which the towers' configuration stands."""

HeadCount = Annotated[int, Range(1, 1024)]


@ranged("heads.")
class Heads:
    """Head counts, which no tensor tells: by width for the family, given for others.

    Attributes:
      vision: of the vision tower's blocks.
      pool: of the attention pool.
      text: of the text tower's blocks.
    """

    vision: HeadCount | None = None
    pool: HeadCount | None = None
    text: HeadCount | None = None


@dataclass(frozen=True)
class Towers:
    """A vision tower and, in a checkpoint of both, a text tower."""

    vision: EncoderConfig
    text: TextConfig | None = None

    @property
    def name(self) -> str:
        """The variants that have exactly this shape, or the word "custom"."""
        vision = replace(self.vision, class_position=not self.vision.registers)  # which depends on whose file it is
        names = [name for name, config in VARIANTS.items() if config in (self.vision, vision)]
        return " or ".join(names) or "custom"

    def shapes(self) -> Shapes:
        """The shape of every tensor, by our names."""
        shapes = _prefixed("visual.", self.vision_shapes())
        if self.text is not None:
            shapes |= _prefixed("text.", _text_shapes(self.text)) | {LOGIT_SCALE: ()}
            shapes |= {LOGIT_BIAS: ()} if self.text.logit_bias else {}
        return shapes

    def vision_shapes(self) -> Shapes:
        """The shape of every tensor of the vision tower, by our names without what stands before them."""
        return _vision_shapes(self.vision)

    def to_json(self) -> str:
        """For the metadata of a file."""
        vision = self.vision.to_json()
        if not self.vision.output_bias:
            del vision["output_bias"]
        return json.dumps({"vision": vision, "text": self.text and self.text.to_json()})

    @staticmethod
    def from_metadata(text: str | None) -> Towers | None:
        """The inverse of `to_json`; None for what other programs write under the same key. Raises UserError for a spoilt one."""
        try:
            value = parse_json(text or "")
        except ValueError:
            return None
        if not isinstance(value, dict) or "vision" not in value:
            return None
        try:
            vision = EncoderConfig(**value["vision"])
            if "framing" in vision.to_json().keys() - value["vision"].keys():  # written before it was part of a configuration
                vision = next((c for c in VARIANTS.values() if replace(c, framing=vision.framing) == vision), vision)
            return Towers(vision, TextConfig(**value["text"]) if value.get("text") else None)
        except (TypeError, ValueError) as error:
            raise UserError(f"the metadata's configuration cannot be read: {str(error)[:200]}") from None


def _prefixed(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.kernel": (inputs, outputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.scale": (width,), f"{name}.bias": (width,)}


def _blocks(depth: int, width: int, mlp_width: int, *, layer_scale: bool = False, qkv_bias: str = "all", gate: str = "none") -> Shapes:
    block = _norm("norm1", width) | {"attn.qkv.kernel": (width, 3 * width)}
    block |= {"all": {"attn.qkv.bias": (3 * width,)}, "no key": {"attn.qkv.bias": (2 * width,)}, "none": {}}[qkv_bias]
    block |= _linear("attn.out", width, width) | _norm("norm2", width)
    firsts = {"none": {"fc": mlp_width}, "packed": {"fc": 2 * mlp_width}, "separate": {"gate": mlp_width, "value": mlp_width}}[gate]
    for name, hidden in firsts.items():
        block |= _linear(f"mlp.{name}", width, hidden)
    block |= _linear("mlp.proj", mlp_width, width)
    block |= {"scale1": (width,), "scale2": (width,)} if layer_scale else {}
    return {f"blocks.{i}.{name}": shape for i in range(depth) for name, shape in block.items()}


def _vision_shapes(c: EncoderConfig) -> Shapes:
    width = c.width
    shapes: Shapes = {"patch.kernel": (c.patch * c.patch * 3, width)}
    shapes |= {"patch.bias": (width,)} if c.patch_bias else {}
    shapes |= {"positions": (c.placed + c.grid**2, width)} if c.positions else {}
    shapes |= {"class_token": (width,)} if c.class_token else {}
    shapes |= {"registers": (c.registers, width)} if c.registers else {}
    shapes |= _norm("norm_pre", width) if c.norm_pre else {}
    shapes |= _blocks(c.depth, width, c.mlp_width, layer_scale=c.layer_scale, qkv_bias=c.qkv_bias, gate=c.gate)
    shapes |= _norm("norm_post", width) if c.norm_post else {}
    if c.pool:
        shapes |= {"pool.probe": (1, width)} | _linear("pool.q", width, width) | _linear("pool.kv", width, 2 * width)
        shapes |= _linear("pool.out", width, width) | _norm("pool.norm", width)
        shapes |= _linear("pool.mlp.fc", width, c.pool_hidden) | _linear("pool.mlp.proj", c.pool_hidden, width)
    shapes |= {"projection.kernel": (width, c.output)} if c.output else {}
    return shapes | ({"projection.bias": (c.output,)} if c.output and c.output_bias else {})


def _text_shapes(c: TextConfig) -> Shapes:
    shapes: Shapes = {"embedding": (c.vocabulary, c.width), "positions": (c.context, c.width)}
    shapes |= _blocks(c.depth, c.width, c.hidden) | _norm("norm", c.width)
    return shapes | {"projection.kernel": (c.width, c.output)} | ({"projection.bias": (c.output,)} if c.output_bias else {})
