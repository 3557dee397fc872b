"""The shape of a model: which tensors its towers have, and which towers a set of tensors belongs to."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from jaxface.errors import UserError
from jaxface.models.variants import TEXT_VARIANTS, VARIANTS, EncoderConfig, TextConfig
from jaxface.ranges import Range, ranged
from weights_convert.bounded import parse_json
from weights_convert.layouts import LOGIT_SCALE

Shapes = dict[str, tuple[int, ...]]


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
        names = [name for name, config in VARIANTS.items() if config == self.vision]
        return " or ".join(names) or "custom"

    def shapes(self) -> Shapes:
        """The shape of every tensor, by our names."""
        shapes = _prefixed("visual.", _vision_shapes(self.vision))
        if self.text is not None:
            shapes |= _prefixed("text.", _text_shapes(self.text)) | {LOGIT_SCALE: ()}
        return shapes

    def to_json(self) -> str:
        """For the metadata of a file."""
        vision = dataclasses.asdict(self.vision)
        if not self.vision.output_bias:
            del vision["output_bias"]
        return json.dumps({"vision": vision, "text": self.text and dataclasses.asdict(self.text)})

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
            return Towers(EncoderConfig(**value["vision"]), TextConfig(**value["text"]) if value.get("text") else None)
        except (TypeError, ValueError) as error:
            raise UserError(f"the metadata's configuration cannot be read: {str(error)[:200]}") from None


def _prefixed(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.kernel": (inputs, outputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.scale": (width,), f"{name}.bias": (width,)}


def _blocks(depth: int, width: int, mlp_width: int, layer_scale: bool = False) -> Shapes:
    block = _norm("norm1", width) | _linear("attn.qkv", width, 3 * width) | _linear("attn.out", width, width) | _norm("norm2", width)
    block |= _linear("mlp.fc", width, mlp_width) | _linear("mlp.proj", mlp_width, width)
    block |= {"scale1": (width,), "scale2": (width,)} if layer_scale else {}
    return {f"blocks.{i}.{name}": shape for i in range(depth) for name, shape in block.items()}


def _vision_shapes(c: EncoderConfig) -> Shapes:
    width = c.width
    shapes: Shapes = {"patch.kernel": (c.patch * c.patch * 3, width), "positions": (c.grid**2 + c.class_token, width)}
    shapes |= {"class_token": (width,)} if c.class_token else {}
    shapes |= _norm("norm_pre", width) | _blocks(c.depth, width, c.mlp_width, c.layer_scale)
    shapes |= _norm("norm_post", width) if c.norm_post else {}
    if c.pool:
        shapes |= {"pool.probe": (1, width)} | _linear("pool.q", width, width) | _linear("pool.kv", width, 2 * width)
        shapes |= _linear("pool.out", width, width) | _norm("pool.norm", width)
        shapes |= _linear("pool.mlp.fc", width, 4 * width) | _linear("pool.mlp.proj", 4 * width, width)
    shapes |= {"projection.kernel": (width, c.output)} if c.output else {}
    return shapes | ({"projection.bias": (c.output,)} if c.output and c.output_bias else {})


def _text_shapes(c: TextConfig) -> Shapes:
    shapes: Shapes = {"embedding": (c.vocabulary, c.width), "positions": (c.context, c.width)}
    shapes |= _blocks(c.depth, c.width, 4 * c.width) | _norm("norm", c.width)
    return shapes | {"projection.kernel": (c.width, c.output)}


def infer(tensors: Mapping[str, np.ndarray], heads: Heads | None = None, projected: bool = False) -> Towers:
    """The towers that tensors with our names belong to, each number read off where most tensors agree on it.

    Args:
      tensors: by our names; some may be missing or have wrong shapes.
      heads: head counts of widths outside the family.
      projected: a pooled tower of the family has a projection for certain, so that a missing one is missed.

    Raises UserError if a number cannot be told: too much is missing, or the width is none of the family's and `heads` is not given.
    """
    heads = heads or Heads()
    shapes = {name: tuple(array.shape) for name, array in tensors.items()}
    vision = {name.removeprefix("visual."): shape for name, shape in shapes.items() if name.startswith("visual.")}
    text = {name.removeprefix("text."): shape for name, shape in shapes.items() if name.startswith("text.")}
    if not vision:
        raise UserError("no vision tower in it")
    return Towers(_infer_vision(vision, heads, projected), _infer_text(text, heads) if text else None)


def _majority(shapes: Shapes, pattern: str, axis: int = -1, what: str = "", otherwise: int | None = None) -> int:
    """The size of that axis in most of the tensors whose names match."""
    sizes = Counter(shape[axis] for name, shape in shapes.items() if re.fullmatch(pattern, name) and shape)
    if sizes:
        return sizes.most_common(1)[0][0]
    if otherwise is None:
        raise UserError(f"cannot tell the {what}: the tensors that show it are missing")
    return otherwise


def _infer_vision(shapes: Shapes, heads: Heads, projected: bool) -> EncoderConfig:
    width = _majority(shapes, r"norm_pre.*|.*norm\d\.\w+|class_token|positions", what="width")
    depth = _depth(shapes)
    pool = any(name.startswith("pool.") for name in shapes)
    alike = next((c for c in VARIANTS.values() if (c.width, c.depth, c.pool) == (width, depth, pool)), None)
    rows = _majority(shapes, r"patch\.kernel", 0, "patch size (patch embedding)", alike.patch**2 * 3 if alike else None)
    patch = round((rows / 3) ** 0.5)
    count = _majority(shapes, "positions", 0, "image size (position embedding)", alike.grid**2 + alike.class_token if alike else None)
    class_token = round(count**0.5) ** 2 != count
    return EncoderConfig(
        width=width,
        depth=depth,
        heads=heads.vision or _by_width(width, {c.width: c.heads for c in VARIANTS.values()}, "heads"),
        mlp_width=_majority(shapes, r"blocks\.\d+\.mlp\.fc\.\w+", what="width of the MLPs"),
        patch=patch,
        image_size=round((count - class_token) ** 0.5) * patch,
        class_token=class_token,
        pool=pool,
        layer_scale=any(re.fullmatch(r"blocks\.\d+\.scale[12]", name) for name in shapes),
        norm_post=pool or any(name.startswith("norm_post.") for name in shapes),
        output=shapes.get("projection.kernel", (alike.output if alike and projected else None,))[-1],
        pool_heads=heads.pool or (alike.pool_heads if alike and pool else 8),
    )


def _infer_text(shapes: Shapes, heads: Heads) -> TextConfig:
    width = _majority(shapes, r"norm\.\w+|.*norm\d\.\w+|embedding|positions", what="text tower's width")
    return TextConfig(
        width=width,
        depth=_depth(shapes),
        heads=heads.text or _by_width(width, {c.width: c.heads for c in TEXT_VARIANTS.values()}, "text heads"),
        context=_majority(shapes, "positions", 0, "context length (text position embedding)"),
        output=_majority(shapes, r"projection\.kernel", what="text tower's output (text projection)"),
        vocabulary=_majority(shapes, "embedding", 0, "vocabulary (token embedding)"),
    )


def _depth(shapes: Shapes) -> int:
    numbers = {int(match[1]) for name in shapes if (match := re.match(r"blocks\.(\d{1,9})\.", name))}
    if max(numbers, default=0) > len(shapes):
        raise UserError(f"cannot tell the number of blocks: it has tensors of block {max(numbers)}, and {len(shapes)} tensors in all")
    return 1 + max(numbers, default=-1)


def _by_width(width: int, known: Mapping[int, int], what: str) -> int:
    if width not in known:
        widths = ", ".join(map(str, sorted(known)))
        raise UserError(f"width {width} is none of the family's ({widths}): tell the number of {what}")
    return known[width]
