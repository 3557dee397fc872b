"""A checkpoint of the family in any layout: recognised, checked tensor by tensor, and written in any other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import DTypeLike

from jaxface.errors import UserError
from jaxface.models.config import EncoderConfig
from jaxface.models.variants import TEXT_VARIANTS, VARIANTS, get_variant
from weights_convert.inference import Ambiguous, infer, infer_text
from weights_convert.layouts import (
    LAYOUTS,
    LOGIT_BIAS,
    LOGIT_SCALE,
    ZERO,
    Layout,
    Row,
    carried,
    decode,
    encode,
    is_carried,
    numbered,
    recognise,
    table,
)
from weights_convert.tensor_files import TensorFile, open_tensors, write_tensors
from weights_convert.tensor_parts import NotFinite, finite, is_floating, joined_shape
from weights_convert.towers import Heads, Shapes, Towers

CONFIG = "config"
"""The key of a safetensors file's metadata under which the towers' configuration stands."""
Classifier = Literal["refuse", "drop", "keep"]
RELEASE = 64 * 2**20
"""Bytes after which the pages read so far are let go."""


@dataclass
class Checkpoint:
    """A checkpoint that was found to be whole.

    Attributes:
      file: its tensors as they stand in it.
      layout: the layout it is in.
      towers: the shape of the model.
      tensors: every tensor under our name, blocks counted, as a view of the mapped file.
    """

    file: TensorFile
    layout: Layout
    towers: Towers
    tensors: dict[str, np.ndarray]

    def not_finite(self) -> UserError:
        """The error that names the tensors with NaN or infinity in them, as the file spells them."""
        names = [name for name, array in self.file.tensors.items() if not finite(np.ascontiguousarray(array))]
        return UserError(f"{self.file.path}: {_some('with NaN or infinity inside', names)}; save a whole checkpoint again")


def read_checkpoint(
    path: str | Path,
    *,
    config: Towers | EncoderConfig | str | None = None,
    heads: Heads | None = None,
    averaged: bool | None = None,
    classifier: Classifier = "refuse",
) -> Checkpoint:
    """Opens a checkpoint and checks names and shapes of all its tensors; values are not touched.

    Args:
      path: a safetensors file, one of torch's, an index of several, or a folder with them, in any layout of `LAYOUTS`.
      config: what it must be: a variant's name or a configuration. None reads it off the metadata or the tensors.
      heads: head counts, for a shape that is none of the family's and where no metadata tells.
      averaged: whether to take the moving average (EMA) of a training checkpoint; None takes it if it is there.
      classifier: what to do with a trained classifier in the place of the projection: refuse it, drop it, or keep it with its bias.

    Raises UserError naming every tensor that is missing, too much, or of another shape than its place asks for, and for a model
    whose tensors do not tell whether it is of the family.
    """
    file = open_tensors(path, averaged=averaged)
    file.tensors = _without_prefix(file.tensors)
    layout, form, known = recognise(file.tensors)
    if not known or (5 * known < len(file.tensors) and CONFIG not in file.metadata):
        _require_alone(path, file.tensors)
        names = ", ".join(name[:80] for name in list(file.tensors)[:3]) or "none"
        raise UserError(f"{path}: no layout of an encoder ({', '.join(LAYOUTS)}) has its tensors ({names}, ...)")
    whole = [f"{name} ({array.dtype})" for name, array in file.tensors.items() if not is_floating(array.dtype)]
    if whole:
        raise UserError(f"{path}: {_some('of whole numbers, which no weights are', whole)}")
    rows = table(layout, form)
    if layout.left_out:
        file.tensors = {name: array for name, array in file.tensors.items() if not re.fullmatch(layout.left_out, name)}
    try:
        _settle_classifier(file, form[0], classifier)
        ours, surplus = decode(rows, file.tensors)
        towers = _towers(config, file, ours, heads, layout)
    except Ambiguous as error:
        raise Ambiguous(error.names, error.fields, f"{path}: ") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    theirs = file.tensors
    text = towers.text is not None
    if not text and any(name in (LOGIT_SCALE, LOGIT_BIAS) or name.startswith("text.") for name in ours):
        surplus |= {row.theirs for row in rows if row.ours in (LOGIT_SCALE, LOGIT_BIAS)} & set(theirs)
    if file.activation not in (None, towers.vision.activation) and towers.vision.gate == "none":
        raise UserError(f"{path}: its configuration says activation {file.activation}, and {towers.name} has {towers.vision.activation}")
    optional = carried(rows)
    needed = {name: array for name, array in theirs.items() if not optional(name)}
    expected = _expected(layout, table(layout, form, (towers.vision, towers.text)), towers)
    problems = _compare({name: shape for name, shape in expected.items() if not optional(name)}, needed, surplus)
    if problems:
        wanted = config if isinstance(config, str) else towers.name
        if other := _other(ours, towers):
            raise UserError(f"{path}: its tensors are those of {other} ({layout.name}), and what it must be is {wanted}")
        raise UserError(f"{path}: read as {layout.name}, {wanted}: {'; '.join(problems)}")
    guessed = config is None and heads in (None, Heads()) and Towers.from_metadata(file.metadata.get(CONFIG)) is None
    if guessed and layout.zero_bias and towers.vision.rope == "axial":  # one of timm's
        _require_size(path, towers.vision)
    if towers.vision.qkv_bias == "none":  # Meta's files of such models have zeros
        biases = [ours.pop(name) for name in list(ours) if name.endswith(".attn.qkv.bias")]
        if any(bias.any() for bias in biases):
            raise UserError(f"{path}: its queries and values have biases, and what it must be ({towers.name}) has none")
    bias = None if towers.vision.output_bias else ours.pop(ZERO, None)
    if bias is not None and bias.any():
        raise UserError(f"{path}: head.bias is not zero, and what it must be ({towers.name}) has no such bias")
    return Checkpoint(file, layout, towers, ours)


def _other(ours: Mapping[str, np.ndarray], towers: Towers) -> str:
    """Which variant's tensors those of a file are that is not what it must be, where that can be told."""
    try:
        names = infer(ours).name
    except Ambiguous as error:
        names = " or ".join(error.names)
    except UserError:
        return ""
    return "" if names in ("custom", towers.name) else names


ANCHORS = ("patch_embed.proj.weight", "conv1.weight", "patch.kernel", "embeddings.cls_token")
"""A tensor of the start of each layout, without what may stand before it."""


def _prefixes(names: Iterable[str]) -> Iterator[str]:
    """What wrappers put before names (`module.`, `_orig_mod.`, `timm_model.`, `model.`, ...), known by the patch embedding's."""
    for name in names:
        match = re.fullmatch(rf"((?:[a-zA-Z_]\w*\.)*?)(?:visual\.(?:trunk\.)?)?(?:{'|'.join(map(re.escape, ANCHORS))})", name)
        if match and match[1]:
            yield match[1]


def _without_prefix(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors without what a wrapper put before every name."""
    for prefix in _prefixes(tensors):
        if all(other.startswith(prefix) for other in tensors):
            return {other.removeprefix(prefix): array for other, array in tensors.items()}
    return dict(tensors)


def _require_alone(path: str | Path, names: Iterable[str]) -> None:
    """Raises UserError for tensors that are no encoder's beside one whose names all begin alike."""
    prefix = next(_prefixes(names), None)
    others = [name for name in names if prefix and not name.startswith(prefix)]
    if others:
        raise UserError(f"{path}: beside the encoder ({prefix}...) stand {_some('of something else', others)}: save the encoder alone")


def _settle_classifier(file: TensorFile, prefix: str, classifier: Classifier) -> None:
    """Keeps or drops timm's `head` where it is a classifier and no projection. Raises UserError where that is not said.

    A projection has a bias of zeros, or none; only towers with an attention pool, or with norms before and behind their blocks as CLIP's
    have, project.
    """
    weight, bias = (f"{prefix}head.{part}" for part in ("weight", "bias"))
    if weight not in file.tensors:
        return
    trained = bias in file.tensors and bool(np.any(file.tensors[bias]))
    norms = all(f"{prefix}{name}.weight" in file.tensors for name in ("norm_pre", "norm"))
    pooled = norms or any(name.startswith(f"{prefix}attn_pool.") for name in file.tensors)
    if not trained and pooled:
        return
    if classifier == "refuse" or (classifier == "keep" and not pooled):
        why = "its bias is not zero" if trained else "the tower has no feature to project"
        hint = "drop leaves it out" + (", keep takes it as the projection with its bias" if pooled else "")
        raise UserError(f"{prefix}head is a trained classifier, not the projection ({bias}: {why}): say classifier: {hint}")
    if classifier == "drop":
        file.tensors = {name: array for name, array in file.tensors.items() if name not in (weight, bias)}


def _towers(
    config: Towers | EncoderConfig | str | None, file: TensorFile, ours: Mapping[str, np.ndarray], heads: Heads | None, layout: Layout
) -> Towers:
    """What the checkpoint has to be."""
    if isinstance(config, Towers):
        return config
    if config is None and (told := Towers.from_metadata(file.metadata.get(CONFIG))) is not None:
        return told
    biased = ZERO in ours and bool(np.any(ours[ZERO]))
    if config is None:
        try:
            found = infer(ours, heads, projected=layout.name != "timm")
        except Ambiguous as error:
            known = [name for name in error.names if VARIANTS[name].activation == file.activation]
            if error.fields != ["activation"] or not known:
                raise
            return _towers(known[0], file, ours, heads, layout)
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


def _require_size(path: str | Path, vision: EncoderConfig) -> None:
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


def _expected(layout: Layout, rows: tuple[Row, ...], towers: Towers) -> Shapes:
    """The shapes that a file of these rows has: the table applied to arrays that take no memory."""
    nothing = np.zeros((), np.float32)
    arrays = {name: np.broadcast_to(nothing, shape) for name, shape in towers.shapes().items()}
    return {name: joined_shape(parts) for name, parts in encode(rows, _with_beside(layout, towers, arrays)).items()}


def _with_beside(layout: Layout, towers: Towers, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays, and what the layout's files have beside them: of timm's zeros for the projection's bias."""
    output = towers.vision.output
    beside = layout.beside(towers.vision, arrays["visual.patch.kernel"].dtype)
    arrays = {f"visual.{name}": array for name, array in beside.items()} | arrays
    if not layout.zero_bias or not output or ZERO in arrays:
        return arrays
    return arrays | {ZERO: np.zeros(output, arrays["visual.projection.kernel"].dtype)}


def _compare(expected: Shapes, theirs: Mapping[str, np.ndarray], surplus: set[str]) -> list[str]:
    """What is wrong with the names and shapes, in one phrase a kind of fault."""
    missing = [f"{name} {list(shape)}" for name, shape in expected.items() if name not in theirs]
    more = [f"{name} {list(array.shape)}" for name, array in theirs.items() if name not in expected or name in surplus]
    shapes = [
        f"{name} is {list(theirs[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in theirs and tuple(theirs[name].shape) != shape
    ]
    found = ((missing, "missing"), (more, "too many"), (shapes, "of the wrong shape"))
    return [_some(what, items) for items, what in found if items]


def _some(what: str, items: list[str], most: int = 6) -> str:
    """ "2 tensors missing: a, b", the first few by name."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return f"{len(items)} tensor{'s' * (len(items) > 1)} {what}: {', '.join(item[:160] for item in items[:most])}{more}"


def unplaced(layout: str, towers: Towers) -> list[str]:
    """Our names of what a layout has no place for; a text tower that it leaves out as a whole is not among them."""
    chosen = LAYOUTS.get(layout)
    text = towers.text if chosen.text else None
    placed = {row.ours for row in table(chosen, chosen.forms[0 if chosen.text else -1], (towers.vision, text))} | {ZERO}
    names = Towers(towers.vision, text).shapes()
    return [name for name in names if numbered(name) not in placed]


def _laid_out(layout: str, towers: Towers, tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, list[np.ndarray]], Towers]:
    """The parts of every tensor of a layout, and the towers that it has a place for."""
    chosen = LAYOUTS.get(layout)
    text = towers.text is not None and chosen.text is not None
    arrays = dict(tensors)
    problems = _compare(towers.shapes(), {name: array for name, array in arrays.items() if not is_carried(name)}, set())
    if problems:
        raise UserError(f"cannot be written as {towers.name}: {'; '.join(problems)}")
    rows = table(chosen, chosen.forms[0 if text else -1], (towers.vision, towers.text if text else None))
    if homeless := unplaced(layout, towers):
        raise UserError(f"layout {layout} has no place for what {towers.name} has: {_some('without one', homeless)}; take another layout")
    if towers.vision.output_bias and not any(row.ours == ZERO for row in rows):
        raise UserError(f"layout {layout} has no place for the bias of a classifier: drop it, or take another layout")
    vision = towers.vision
    tells = chosen.class_position is not None and vision.registers and vision.positions and vision.class_token
    if tells and vision.class_position != chosen.class_position:
        arrays |= _other_class_position(arrays, vision.class_position)
        vision = replace(vision, class_position=chosen.class_position)
    parts = encode(rows, _with_beside(chosen, towers, arrays))
    return parts, Towers(vision, towers.text if text else None)


def _other_class_position(arrays: Mapping[str, np.ndarray], has: bool) -> dict[str, np.ndarray]:
    """The class token with its position added to it, and the patches' positions alone; or behind one of zeros, where it has none."""
    token, positions = (arrays[f"visual.{name}"] for name in ("class_token", "positions"))
    if not has:
        return {"visual.positions": np.concatenate([np.zeros_like(positions[:1]), positions])}
    return {"visual.class_token": token + positions[0], "visual.positions": positions[1:]}


def layout_tensors(layout: str, towers: Towers, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors with our names as those of a layout, in memory. Raises UserError if it is unknown."""
    parts = _laid_out(layout, towers, tensors)[0]
    return {name: arrays[0] if len(arrays) == 1 else np.concatenate(arrays) for name, arrays in parts.items()}


def write_checkpoint(
    path: str | Path,
    towers: Towers,
    tensors: Mapping[str, np.ndarray],
    *,
    layout: str = "jaxface",
    dtype: DTypeLike | None = None,
    written: Callable[[int], None] = lambda count: None,
) -> int:
    """Writes tensors with our names in a layout; a layout without a text tower leaves it out. The number of tensors written.

    Raises UserError if the layout is unknown or the file cannot be written, NotFinite at the first tensor with NaN or infinity.
    """
    parts, described = _laid_out(layout, towers, tensors)
    write_tensors(path, parts, dtype=dtype, metadata={"format": "pt", CONFIG: described.to_json()}, written=written)
    return len(parts)


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    layout: str = "jaxface",
    dtype: DTypeLike | None = None,
    config: Towers | EncoderConfig | str | None = None,
    heads: Heads | None = None,
    averaged: bool | None = None,
    classifier: Classifier = "refuse",
    written: Callable[[int], None] = lambda count: None,
) -> tuple[Checkpoint, int]:
    """Reads a checkpoint and writes it in a layout, a part at a time: memory does not grow with the file.

    Returns:
      what was read, and the number of tensors written.
    """
    checkpoint = read_checkpoint(source, config=config, heads=heads, averaged=averaged, classifier=classifier)
    since_release = 0

    def count(size: int) -> None:
        nonlocal since_release
        since_release += size
        if since_release >= RELEASE:
            checkpoint.file.release()
            since_release = 0
        written(size)

    try:
        return checkpoint, write_checkpoint(destination, checkpoint.towers, checkpoint.tensors, layout=layout, dtype=dtype, written=count)
    except NotFinite:
        raise checkpoint.not_finite() from None
