"""Which model tensors belong to: what their names and shapes tell, and for the rest the variants that have such tensors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxface.errors import UserError
from jaxface.models.config import EncoderConfig, TextConfig
from jaxface.models.variants import TEXT_VARIANTS, VARIANTS, get_variant
from weights_convert.folders import Told
from weights_convert.layouts import LOGIT_BIAS, ZERO, Layout
from weights_convert.tensor_files import TensorFile
from weights_convert.towers import CONFIG, Heads, Shapes, Towers

BUILD = (
    *("class_token", "pool", "layer_scale", "norm_post", "registers", "positions"),
    *("norm_pre", "patch_bias", "qkv_bias", "gate"),
)
"""What the names of tensors tell."""
UNTOLD = ("rope", "activation", "epsilon", "pixels", "resize", "readout", "framing")
"""What no tensor tells, beside head counts and an image size without absolute positions."""
WORDS = {
    **{"class_token": "a class token", "pool": "an attention pool", "layer_scale": "LayerScale", "norm_post": "a norm behind the blocks"},
    **{"positions": "learned positions", "norm_pre": "a norm before the blocks", "patch_bias": "a bias of the patch embedding"},
}
"""For those of them that are there or not."""
BIASES = {
    "all": "biases of queries, keys and values",
    "no key": "biases of queries and values alone",
    "none": "no biases of queries, keys and values",
}
SIZES = ("width", "depth", "mlp_width", "patch", "pool_mlp_width")


class Ambiguous(UserError):
    """Tensors that several variants have, `names`, which differ in `fields`."""

    def __init__(self, names: list[str], fields: list[str], where: str = "") -> None:
        differ = ", ".join(field.replace("_", " ") for field in fields)
        said = "say which: --encoder.variant of a run, --variant of other commands, or a configuration"
        super().__init__(f"{where}{', '.join(names)} have the same tensors and differ in {differ}: {said}")
        self.names, self.fields = names, fields


class Unlike(UserError):
    """Tensors that are built as no variant's are; the message begins with what the nearest one does not have, or has not."""

    advice = (
        "; where that is all (a plain ViT, say), what no tensor tells (heads, activation, normalisation, readout, rotary positions) is "
        "told by an EncoderConfig: `config`, or a row of VARIANTS from --import FILE.py"
    )

    def __init__(self, differ: str, foreign: str = "") -> None:
        more = f", and with {foreign}" if foreign else self.advice
        super().__init__(f"its tensors are of no family that is known: as {differ}{more}")
        self.differ = differ


def infer(tensors: Mapping[str, np.ndarray], heads: Heads | None = None, projected: bool = False, said: Told | None = None) -> Towers:
    """The towers that tensors with our names belong to, each number read off where most tensors agree on it.

    Args:
      tensors: by our names; some may be missing or have wrong shapes.
      heads: head counts, for shapes that no variant has.
      projected: a variant's pooled tower has its projection for certain, so that a missing one is missed.
      said: what stands beside the file.

    Raises Ambiguous where variants that differ have these tensors, Unlike where no variant is alike, UserError where too much is missing.
    """
    heads = heads or Heads()
    shapes = {name: tuple(array.shape) for name, array in tensors.items()}
    vision = {name.removeprefix("visual."): shape for name, shape in shapes.items() if name.startswith("visual.")}
    text = {name.removeprefix("text."): shape for name, shape in shapes.items() if name.startswith("text.")}
    if not vision:
        raise UserError("no vision tower in it")
    found = _infer_vision(vision, heads, projected, said or Told())
    return Towers(found, infer_text(tensors, found, heads) if text else None)


def _majority(shapes: Shapes, pattern: str, axis: int = -1, what: str = "", otherwise: int | None = None) -> int:
    """The size of that axis in most of the tensors whose names match."""
    sizes = Counter(shape[axis] for name, shape in shapes.items() if re.fullmatch(pattern, name) and shape)
    if sizes:
        return sizes.most_common(1)[0][0]
    if otherwise is None:
        raise UserError(f"cannot tell the {what}: the tensors that show it are missing")
    return otherwise


def _has(shapes: Shapes, pattern: str) -> bool:
    return any(re.fullmatch(pattern, name) for name in shapes)


def _infer_vision(shapes: Shapes, heads: Heads, projected: bool, said: Told) -> EncoderConfig:
    width = _majority(shapes, r"norm_pre.*|.*norm\d\.\w+|class_token|positions", what="width")
    depth = _depth(shapes)
    near = _nearest(shapes, width, depth)
    told = _told(shapes, width, depth, near)
    alike = [name for name, c in VARIANTS.items() if all(getattr(c, field) == told[field] for field in (*SIZES, *BUILD))]
    untold: tuple[str, ...] = (*UNTOLD, "heads", "pool_heads")
    if not alike:
        kind = [field for field in BUILD if field != "registers"]  # whose number sets no family apart
        alike = [name for name, c in VARIANTS.items() if all(getattr(c, field) == told[field] for field in kind)]
        untold = UNTOLD
    if not alike:
        raise Unlike(_unlike(told, shapes))
    alike = [name for name in alike if VARIANTS[name].image_size == told["image_size"]] or alike
    for field in ("activation", "pixels"):
        alike = [name for name in alike if getattr(VARIANTS[name], field) == getattr(said, field)] or alike
    first = VARIANTS[alike[0]]
    usual = () if "heads" in untold else ("framing", "pixels")  # a shape of no variant has what most have
    differing = [field for field in untold if field not in usual and len({getattr(VARIANTS[name], field) for name in alike}) > 1]
    if differing:
        raise Ambiguous(alike, differing)
    rest: dict[str, Any] = {field: getattr(first, field) for field in untold} | ({"pixels": said.pixels} if said.pixels else {})
    if said.middle is not None and first.framing.startswith("bicubic"):
        rest["framing"] = "bicubic-middle" if said.middle else "bicubic-squash"
    if "heads" not in untold:
        widths = {c.width: c.heads for c in (*VARIANTS.values(), *(VARIANTS[name] for name in alike))}
        rest |= {"heads": heads.vision or _by_width(width, widths, "heads"), "pool_heads": 8}
    output = shapes.get("projection.kernel", (near.output if near and projected and told["pool"] else None,))[-1]
    if told["image_size"] is None:
        told["image_size"] = first.image_size // first.patch * told["patch"]
    found = EncoderConfig(**told, **rest, output=output)
    found = replace(found, heads=heads.vision or found.heads)
    return replace(found, pool_heads=heads.pool or found.pool_heads) if told["pool"] else found


def _unlike(told: Mapping[str, Any], shapes: Shapes) -> str:
    """What sets tensors that are built as no variant's apart from the nearest one's."""
    there: dict[str, Any] = {**told, "class_token": _has(shapes, "class_token")}

    def unlike(name: str) -> list[str]:
        near = VARIANTS[name]
        found = [f"{'with' if there[field] else 'without'} {word}" for field, word in WORDS.items() if getattr(near, field) != there[field]]
        found += [f"with {there['registers']} registers"] * (near.registers != there["registers"])
        found += [f"with {BIASES[there['qkv_bias']]}"] * (near.qkv_bias != there["qkv_bias"])
        return found + [f"{'without' if there['gate'] == 'none' else 'with'} a gate in the MLPs"] * (near.gate != there["gate"])

    nearest = min(VARIANTS, key=lambda name: (len(unlike(name)), VARIANTS[name].width != there["width"]))
    return f"{nearest}'s, but {', '.join(unlike(nearest)) or 'with other positions'}"


def _nearest(shapes: Shapes, width: int, depth: int) -> EncoderConfig | None:
    """The variant of that width and depth that shares most tensors, if those are most of its own: a whole or a damaged file of it."""
    best, most = None, 0.0
    for config in VARIANTS.values():
        if (config.width, config.depth) == (width, depth):
            for kind in dict.fromkeys((config, replace(config, class_position=True))):  # which depends on whose file it is
                own = Towers(kind).vision_shapes()
                share = sum(shapes.get(name) == shape for name, shape in own.items()) / max(len(own), len(shapes))
                best, most = (kind, share) if share > most else (best, most)
    return best if most > 0.8 else None


def _told(shapes: Shapes, width: int, depth: int, near: EncoderConfig | None) -> dict[str, Any]:
    """What tensors say; of a damaged file what the variant has that is nearest to it. The image size is None without absolute positions."""
    rows = _majority(shapes, r"patch\.kernel", 0, "patch size (patch embedding)", near.patch**2 * 3 if near else None)
    places = near.placed + near.grid**2 if near and near.positions else 0
    count = _majority(shapes, "positions", 0, otherwise=places)
    squared = bool(count) and round(count**0.5) ** 2 == count
    class_token = _has(shapes, "class_token") or (count > 0 and not squared)
    hidden = _majority(shapes, r"blocks\.\d+\.mlp\.proj\.kernel", 0, "width of the MLPs", near.mlp_width if near else None)
    first = _majority(shapes, r"blocks\.\d+\.mlp\.fc\.\w+", otherwise=0)
    biases = {3 * width: "all", 2 * width: "no key"}
    pool = _has(shapes, r"pool\..*")
    pool_hidden = _majority(shapes, r"pool\.mlp\.proj\.kernel", 0, otherwise=4 * width)
    placed = int(class_token and not squared)
    told: dict[str, Any] = {
        "width": width,
        "depth": depth,
        "mlp_width": hidden,
        "patch": round((rows / 3) ** 0.5),
        "pool_mlp_width": None if pool_hidden == 4 * width else pool_hidden,
        "class_token": class_token,
        "class_position": not count or bool(placed) or not class_token,
        "pool": pool,
        "layer_scale": _has(shapes, r"blocks\.\d+\.scale[12]"),
        "norm_post": pool or _has(shapes, r"norm_post\..*"),
        "registers": shapes.get("registers", (0,))[0],
        "positions": count > 0,
        "norm_pre": _has(shapes, r"norm_pre\..*"),
        "patch_bias": _has(shapes, r"patch\.bias"),
        "qkv_bias": biases.get(_majority(shapes, r"blocks\.\d+\.attn\.qkv\.bias", otherwise=0), "none"),
        "gate": "separate" if _has(shapes, r"blocks\.\d+\.mlp\.gate\..*") else "packed" if first == 2 * hidden else "none",
    }
    told |= {} if near is None else {field: getattr(near, field) for field in BUILD}
    side = round((count - placed) ** 0.5) if count else None
    return told | {"image_size": side and side * told["patch"]}


def infer_text(tensors: Mapping[str, np.ndarray], vision: EncoderConfig, heads: Heads | None = None) -> TextConfig:
    """The text tower beside a vision tower, whose activation and norms it has; one whose projection has a bias is SigLIP's."""
    heads = heads or Heads()
    shapes = {name.removeprefix("text."): tuple(array.shape) for name, array in tensors.items() if name.startswith("text.")}
    width = _majority(shapes, r"norm\.\w+|.*norm\d\.\w+|embedding|positions", what="text tower's width")
    hidden = _majority(shapes, r"blocks\.\d+\.mlp\.fc\.\w+", otherwise=4 * width)
    biased = "projection.bias" in shapes
    return TextConfig(
        width=width,
        depth=_depth(shapes),
        heads=heads.text or _by_width(width, {c.width: c.heads for c in TEXT_VARIANTS.values()}, "text heads"),
        context=_majority(shapes, "positions", 0, "context length (text position embedding)"),
        output=_majority(shapes, r"projection\.kernel", what="text tower's output (text projection)"),
        vocabulary=_majority(shapes, "embedding", 0, "vocabulary (token embedding)"),
        mlp_width=None if hidden == 4 * width else hidden,
        activation=vision.activation,
        epsilon=vision.epsilon,
        causal=not biased,
        last=biased,
        output_bias=biased,
        logit_bias=LOGIT_BIAS in tensors,
    )


def _depth(shapes: Iterable[str]) -> int:
    names = list(shapes)
    numbers = {int(match[1]) for name in names if (match := re.match(r"blocks\.(\d{1,9})\.", name))}
    if max(numbers, default=0) > len(names):
        raise UserError(f"cannot tell the number of blocks: it has tensors of block {max(numbers)}, and {len(names)} tensors in all")
    return 1 + max(numbers, default=-1)


def _by_width(width: int, known: Mapping[int, int], what: str) -> int:
    if width not in known:
        widths = ", ".join(map(str, sorted(known)))
        raise UserError(f"width {width} is none of the variants' ({widths}): tell the number of {what}")
    return known[width]


def settle_towers(
    config: Towers | EncoderConfig | str | None, file: TensorFile, ours: Mapping[str, np.ndarray], heads: Heads | None, layout: Layout
) -> Towers:
    """What the checkpoint has to be."""
    if isinstance(config, Towers):
        return config
    if config is None and (told := Towers.from_metadata(file.metadata.get(CONFIG))) is not None:
        return told
    biased = ZERO in ours and bool(np.any(ours[ZERO]))
    if config is None:
        found = infer(ours, heads, projected=layout.name != "timm", said=file.told)
        found = replace(found, vision=replace(found.vision, output_bias=biased))
        _require_told(found, heads or Heads())
        return found
    vision = get_variant(config) if isinstance(config, str) else config
    if vision.output and "visual.projection.kernel" not in ours and layout.name == "timm":
        vision = replace(vision, output=None)
    elif biased:
        vision = replace(vision, output=ours["visual.projection.kernel"].shape[-1], output_bias=True)
    if not any(name.startswith("text.") for name in ours):
        return Towers(vision)
    return Towers(
        vision, TEXT_VARIANTS.get(config) if isinstance(config, str) and config in TEXT_VARIANTS else infer_text(ours, vision, heads)
    )


def _shape(c: EncoderConfig) -> EncoderConfig:
    """A configuration but for what files of one variant differ in."""
    return replace(c, image_size=c.patch, output=None, output_bias=False, class_position=True)


def require_size(path: str | Path, vision: EncoderConfig) -> None:
    """Raises UserError for positions of another image size than the variant's, since timm scales rotary ones by then."""
    native = sorted({c.image_size for c in VARIANTS.values() if _shape(c) == _shape(vision)})
    if vision.image_size not in native:
        size, grid = vision.image_size, vision.grid
        raise UserError(
            f"{path}: its positions are for images of {size} pixels, not {' or '.join(map(str, native))}: timm scales rotary ones of "
            f"such a model by its ref_feat_shape, which no tensor tells; if that was [{grid}, {grid}], which scales nothing, give its "
            "number of heads"
        )


def _require_told(towers: Towers, heads: Heads) -> None:
    """Raises UserError for shapes of no variant, unless their heads are given."""
    c = towers.vision
    if heads.vision is None and _shape(c) not in map(_shape, VARIANTS.values()):
        raise UserError(
            f"no variant has width {c.width}, {c.depth} blocks, patch {c.patch}, {'a' if c.pool else 'no'} pool: its tensors do not tell "
            "its heads; give their number, or a configuration"
        )
    if towers.text is not None and heads.text is None and towers.text not in TEXT_VARIANTS.values():
        c = towers.text
        raise UserError(f"no text tower of the family has width {c.width}, {c.depth} blocks, context {c.context}: give its number of heads")


def other_variant(ours: Mapping[str, np.ndarray], towers: Towers) -> str:
    """Which variant's tensors those of a file are that is not what it must be, where that can be told."""
    try:
        names = infer(ours).name
    except Ambiguous as error:
        names = " or ".join(error.names)
    except UserError:
        return ""
    return "" if names in ("custom", towers.name) else names
