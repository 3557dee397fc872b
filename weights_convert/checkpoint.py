"""A checkpoint of the family in any layout: recognised, checked tensor by tensor, and written in any other."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from jaxface.errors import UserError
from jaxface.models.config import EncoderConfig
from weights_convert.inference import Ambiguous, Unlike, other_variant, require_size, settle_towers
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
    of_other_rank,
    recognise,
    table,
)
from weights_convert.surroundings import Classifier, require_alone, require_one_resolution, settle_classifier, without_prefix
from weights_convert.tensor_files import TensorFile, open_tensors, write_tensors
from weights_convert.tensor_parts import NotFinite, finite, is_floating, joined_shape, some
from weights_convert.towers import CONFIG, Heads, Shapes, Towers

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
      left_out: the names of those that are of what trained the model, and are not read.
    """

    file: TensorFile
    layout: Layout
    towers: Towers
    tensors: dict[str, np.ndarray]
    left_out: tuple[str, ...] = ()

    def not_finite(self) -> UserError:
        """The error that names the tensors with NaN or infinity in them, as the file spells them."""
        names = [name for name, array in self.file.tensors.items() if not finite(np.ascontiguousarray(array))]
        return UserError(f"{self.file.path}: {some('with NaN or infinity inside', names)}; save a whole checkpoint again")


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
    file.tensors = without_prefix(file.tensors)
    require_one_resolution(path, file.tensors)
    layout, form, known = recognise(file.tensors)
    if not known or (5 * known < len(file.tensors) and CONFIG not in file.metadata):
        require_alone(path, file.tensors)
        names = ", ".join(name[:80] for name in list(file.tensors)[:3]) or "none"
        raise UserError(f"{path}: no layout of an encoder ({', '.join(LAYOUTS)}) has its tensors ({names}, ...)")
    whole = [f"{name} ({array.dtype})" for name, array in file.tensors.items() if not is_floating(array.dtype)]
    if whole:
        raise UserError(f"{path}: {some('of whole numbers, which no weights are', whole)}")
    rows = table(layout, form)
    left_out = tuple(name for name in file.tensors if layout.left_out and re.fullmatch(layout.left_out, name))
    file.tensors = {name: array for name, array in file.tensors.items() if name not in left_out}
    surplus: set[str] = set()
    try:
        refused = settle_classifier(file, form[0], classifier)
        ours, surplus = decode(rows, file.tensors)
        towers = settle_towers(config, file, ours, heads, layout)
        if refused:  # of a model that is none of the known ones it matters no longer
            raise UserError(refused)
    except Ambiguous as error:
        raise Ambiguous(error.names, error.fields, f"{path}: ") from None
    except Unlike as error:
        raise UserError(f"{path}: {Unlike(error.differ, _odd(rows, file, surplus))}") from None
    except UserError as error:
        odd = _odd(rows, file, surplus)
        raise UserError(f"{path}: {error}{odd and '; it has ' + odd}") from None
    theirs = file.tensors
    text = towers.text is not None
    if not text and any(name in (LOGIT_SCALE, LOGIT_BIAS) or name.startswith("text.") for name in ours):
        surplus |= {row.theirs for row in rows if row.ours in (LOGIT_SCALE, LOGIT_BIAS)} & set(theirs)
    for field in ("activation", "pixels") if towers.vision.gate == "none" else ("pixels",):
        said, has = getattr(file.told, field), getattr(towers.vision, field)
        if said not in (None, has):
            raise UserError(f"{path}: its configuration says {field} {said}, and {towers.name} has {has}")
    optional = carried(rows)
    needed = {name: array for name, array in theirs.items() if not optional(name)}
    expected = _expected(layout, table(layout, form, (towers.vision, towers.text)), towers)
    problems = _compare({name: shape for name, shape in expected.items() if not optional(name)}, needed, surplus)
    if problems:
        wanted = config if isinstance(config, str) else towers.name
        if other := other_variant(ours, towers):
            raise UserError(f"{path}: its tensors are those of {other} ({layout.name}), and what it must be is {wanted}")
        raise UserError(f"{path}: read as {layout.name}, {wanted}: {'; '.join(problems)}")
    _require_heads(path, towers, heads or Heads())
    guessed = config is None and heads in (None, Heads()) and Towers.from_metadata(file.metadata.get(CONFIG)) is None
    if guessed and layout.zero_bias and towers.vision.rope == "axial":  # one of timm's
        require_size(path, towers.vision)
    if towers.vision.qkv_bias == "none":  # Meta's files of such models have zeros
        biases = [ours.pop(name) for name in list(ours) if name.endswith(".attn.qkv.bias")]
        if any(bias.any() for bias in biases):
            raise UserError(f"{path}: its queries and values have biases, and what it must be ({towers.name}) has none")
    bias = None if towers.vision.output_bias else ours.pop(ZERO, None)
    if bias is not None and bias.any():
        raise UserError(f"{path}: head.bias is not zero, and what it must be ({towers.name}) has no such bias")
    return Checkpoint(file, layout, towers, ours, left_out)


def _require_heads(path: str | Path, towers: Towers, given: Heads) -> None:
    """Raises UserError for a number of heads that was given, and is another than the model has."""
    text, vision = towers.text, towers.vision
    has = {"heads": (given.vision, vision.heads), "pool_heads": (given.pool, vision.pool_heads if vision.pool else given.pool)}
    for what, (asked, own) in (has | {"text_heads": (given.text, text.heads if text else given.text)}).items():
        if asked not in (None, own):
            raise UserError(f"{path}: {what} {asked}: it has no effect, {towers.name} has {own}: leave it out")


def _odd(rows: tuple[Row, ...], file: TensorFile, surplus: set[str]) -> str:
    """What stands in a file that no encoder has so, in words; nothing if all is as expected."""
    found = {"that no encoder here has": sorted(surplus), "of another rank than is expected": of_other_rank(rows, file.tensors)}
    return " and ".join(some(what, names, 3) for what, names in found.items() if names)


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
    return [some(what, items) for items, what in found if items]


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
        raise UserError(f"layout {layout} has no place for what {towers.name} has: {some('without one', homeless)}; take another layout")
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
