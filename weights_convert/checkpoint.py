"""A checkpoint of the family in any layout: recognised, checked tensor by tensor, and written in any other."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from jaxface.errors import UserError
from jaxface.models.variants import TEXT_VARIANTS, EncoderConfig, get_variant
from weights_convert.layouts import LAYOUTS, LOGIT_SCALE, ZERO, Layout, Row, decode, encode, recognise, table
from weights_convert.tensor_files import TensorFile, open_tensors, write_tensors
from weights_convert.tensor_parts import NotFinite, finite, joined_shape
from weights_convert.towers import Heads, Shapes, Towers, infer

CONFIG = "config"
"""The key of a safetensors file's metadata under which the towers' configuration stands."""
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


def read_checkpoint(path: str | Path, *, config: Towers | EncoderConfig | str | None = None, heads: Heads | None = None) -> Checkpoint:
    """Opens a checkpoint and checks names and shapes of all its tensors; values are not touched.

    Args:
      path: a safetensors file, or one of torch's, in any layout of `LAYOUTS`.
      config: what it must be: a variant's name or a configuration. None reads it off the metadata or the tensors.
      heads: head counts, for a width that is none of the family's and where no metadata tells.

    Raises UserError naming every tensor that is missing, too much, or of another shape than its place asks for.
    """
    file = open_tensors(path)
    theirs = {re.sub(r"^((module|_orig_mod)\.)+", "", name): array for name, array in file.tensors.items()}
    file.tensors = theirs
    layout, form, known = recognise(theirs)
    if not known:
        names = ", ".join(list(theirs)[:3]) or "none"
        raise UserError(f"{path}: no layout of a Perception Encoder ({', '.join(LAYOUTS)}) has its tensors ({names}, ...)")
    rows = table(layout, form)
    ours, surplus = decode(rows, theirs)
    try:
        towers = _towers(config, file, ours, heads, layout)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    text = towers.text is not None
    if not text and any(name == LOGIT_SCALE or name.startswith("text.") for name in ours):
        surplus |= {row.theirs for row in rows if row.ours == LOGIT_SCALE} & set(theirs)
    problems = _compare(_expected(table(layout, form, text), towers), theirs, surplus)
    if problems:
        raise UserError(f"{path}: read as {layout.name}, {towers.name}: {'; '.join(problems)}")
    bias = ours.pop(ZERO, None)
    if bias is not None and bias.any():
        raise UserError(f"{path}: head.bias is not zero: the model has no such bias, and no other layout has a place for it")
    return Checkpoint(file, layout, towers, ours)


def _towers(
    config: Towers | EncoderConfig | str | None, file: TensorFile, ours: Mapping[str, np.ndarray], heads: Heads | None, layout: Layout
) -> Towers:
    """What the checkpoint has to be."""
    if isinstance(config, Towers):
        return config
    if config is None and CONFIG in file.metadata:
        return Towers.from_json(file.metadata[CONFIG])
    if config is None:
        return infer(ours, heads, projected=layout.name != "timm")
    vision = get_variant(config) if isinstance(config, str) else config
    if not any(name.startswith("text.") for name in ours):
        return Towers(vision)
    known = Heads(vision.heads, vision.pool_heads, heads.text if heads else None)
    return Towers(vision, TEXT_VARIANTS.get(config) if isinstance(config, str) and config in TEXT_VARIANTS else infer(ours, known).text)


def _expected(rows: tuple[Row, ...], towers: Towers) -> Shapes:
    """The shapes that a file of these rows has: the table applied to arrays that take no memory."""
    nothing = np.zeros((), np.float32)
    arrays = _with_zero(towers, lambda shape: np.broadcast_to(nothing, shape))
    return {name: joined_shape(parts) for name, parts in encode(rows, arrays).items()}


def _with_zero(towers: Towers, make: Callable[[tuple[int, ...]], np.ndarray]) -> dict[str, np.ndarray]:
    """An array for every tensor of the towers, and for the projection's bias that only timm's layout has."""
    arrays = {name: make(shape) for name, shape in towers.shapes().items()}
    return arrays | ({ZERO: make((towers.vision.output,))} if towers.vision.output else {})


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
    return f"{len(items)} tensor{'s' * (len(items) > 1)} {what}: {', '.join(items[:most])}{more}"


def _laid_out(layout: str, towers: Towers, tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, list[np.ndarray]], Towers]:
    """The parts of every tensor of a layout, and the towers that it has a place for."""
    chosen = LAYOUTS.get(layout)
    text = towers.text is not None and chosen.text is not None
    arrays = dict(tensors)
    if towers.vision.output:
        arrays[ZERO] = np.zeros(towers.vision.output, tensors["visual.projection.kernel"].dtype)
    parts = encode(table(chosen, chosen.forms[0 if text else -1], text), arrays)
    return parts, Towers(towers.vision, towers.text if text else None)


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
    written: Callable[[int], None] = lambda count: None,
) -> tuple[Checkpoint, int]:
    """Reads a checkpoint and writes it in a layout, a part at a time: memory does not grow with the file.

    Returns:
      what was read, and the number of tensors written.
    """
    checkpoint = read_checkpoint(source, config=config, heads=heads)
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
