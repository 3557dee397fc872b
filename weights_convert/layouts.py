"""Checkpoint layouts: one table each, of which of our tensors stands where in theirs and how it is turned.

Our names are those of the modules, with blocks counted (`visual.blocks.3.attn.qkv.kernel`). A table is used in both directions:
`decode` reads their tensors as ours, `encode` forms theirs from ours. Both work on views, so that nothing is copied before it is written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from jaxface.models.config import EncoderConfig
from jaxface.registry import Registry


class Transform(NamedTuple):
    """How an array is turned: from theirs to ours, and back."""

    read: Callable[[np.ndarray], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]


def _write_patch(kernel: np.ndarray) -> np.ndarray:
    side = round((kernel.shape[0] // 3) ** 0.5)
    return kernel.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)


SAME = Transform(lambda x: x, lambda x: x)
TRANSPOSED = Transform(np.transpose, np.transpose)
ONE_BEFORE = Transform(lambda x: x[0], lambda x: x[None])
TWO_BEFORE = Transform(lambda x: x[0, 0], lambda x: x[None, None])
PATCHES = Transform(lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]), _write_patch)
"""A convolution [D, 3, p, p] over patches is a product with a kernel [p * p * 3, D]."""
When = Callable[[EncoderConfig], bool]
"""Which encoders a line is for."""
RANK = {TRANSPOSED: 2, ONE_BEFORE: 3, TWO_BEFORE: 3, PATCHES: 4}


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
      ours: our name; `{i}` counts blocks.
      theirs: their name; where it has no `{i}` and ours has, theirs holds all blocks along its first axis.
      transform: between the two arrays.
      share: which part of the first axis of theirs it is, (first, last, of how many), where theirs holds several of ours.
      piece: which part of the last axis of ours it is, where ours holds several of theirs.
      when: for which encoders it is written so; files are read by the names alone.
    """

    ours: str
    theirs: str
    transform: Transform = SAME
    share: tuple[int, int, int] | None = None
    piece: tuple[int, int, int] | None = None
    when: When = lambda c: True


def _linear(ours: str, theirs: str) -> tuple[Row, ...]:
    return Row(f"{ours}.kernel", f"{theirs}.weight", TRANSPOSED), Row(f"{ours}.bias", f"{theirs}.bias")


def _norm(ours: str, theirs: str) -> tuple[Row, ...]:
    return Row(f"{ours}.scale", f"{theirs}.weight"), Row(f"{ours}.bias", f"{theirs}.bias")


_META_BLOCKS = (
    *_norm("blocks.{i}.norm1", "transformer.resblocks.{i}.ln_1"),
    Row("blocks.{i}.attn.qkv.kernel", "transformer.resblocks.{i}.attn.in_proj_weight", TRANSPOSED),
    Row("blocks.{i}.attn.qkv.bias", "transformer.resblocks.{i}.attn.in_proj_bias"),
    *_linear("blocks.{i}.attn.out", "transformer.resblocks.{i}.attn.out_proj"),
    *_norm("blocks.{i}.norm2", "transformer.resblocks.{i}.ln_2"),
    *_linear("blocks.{i}.mlp.fc", "transformer.resblocks.{i}.mlp.c_fc"),
    *_linear("blocks.{i}.mlp.proj", "transformer.resblocks.{i}.mlp.c_proj"),
)

META_VISION = (
    Row("patch.kernel", "conv1.weight", PATCHES),
    Row("class_token", "class_embedding"),
    Row("positions", "positional_embedding"),
    *_norm("norm_pre", "ln_pre"),
    *_META_BLOCKS,
    Row("blocks.{i}.scale1", "transformer.resblocks.{i}.ls_1.gamma"),
    Row("blocks.{i}.scale2", "transformer.resblocks.{i}.ls_2.gamma"),
    *_norm("norm_post", "ln_post"),
    Row("pool.probe", "attn_pool.probe", ONE_BEFORE),
    Row("pool.q.kernel", "attn_pool.attn.in_proj_weight", TRANSPOSED, (0, 1, 3)),
    Row("pool.kv.kernel", "attn_pool.attn.in_proj_weight", TRANSPOSED, (1, 3, 3)),
    Row("pool.q.bias", "attn_pool.attn.in_proj_bias", SAME, (0, 1, 3)),
    Row("pool.kv.bias", "attn_pool.attn.in_proj_bias", SAME, (1, 3, 3)),
    *_linear("pool.out", "attn_pool.attn.out_proj"),
    *_norm("pool.norm", "attn_pool.layernorm"),
    *_linear("pool.mlp.fc", "attn_pool.mlp.c_fc"),
    *_linear("pool.mlp.proj", "attn_pool.mlp.c_proj"),
    Row("projection.kernel", "proj"),
)

META_TEXT = (
    Row("embedding", "token_embedding.weight"),
    Row("positions", "positional_embedding"),
    *_META_BLOCKS,
    *_norm("norm", "ln_final"),
    Row("projection.kernel", "text_projection"),
)


def _rotary(c: EncoderConfig) -> bool:
    """Whether timm builds it of its class Eva, or else VisionTransformer."""
    return c.rope != "none"


TIMM_VISION = (
    Row("patch.kernel", "patch_embed.proj.weight", PATCHES),
    Row("patch.bias", "patch_embed.proj.bias"),
    Row("class_token", "cls_token", TWO_BEFORE),
    Row("registers", "reg_token", ONE_BEFORE),
    Row("positions", "pos_embed", ONE_BEFORE),
    *_norm("norm_pre", "norm_pre"),
    *_norm("blocks.{i}.norm1", "blocks.{i}.norm1"),
    Row("blocks.{i}.attn.qkv.kernel", "blocks.{i}.attn.qkv.weight", TRANSPOSED),
    Row("blocks.{i}.attn.qkv.bias", "blocks.{i}.attn.qkv.bias", when=lambda c: c.qkv_bias == "all"),
    Row("blocks.{i}.attn.qkv.bias", "blocks.{i}.attn.q_bias", piece=(0, 1, 2), when=lambda c: c.qkv_bias == "no key"),
    Row("blocks.{i}.attn.qkv.bias", "blocks.{i}.attn.v_bias", piece=(1, 2, 2), when=lambda c: c.qkv_bias == "no key"),
    *_linear("blocks.{i}.attn.out", "blocks.{i}.attn.proj"),
    *_norm("blocks.{i}.norm2", "blocks.{i}.norm2"),
    *_linear("blocks.{i}.mlp.fc", "blocks.{i}.mlp.fc1"),
    *_linear("blocks.{i}.mlp.gate", "blocks.{i}.mlp.fc1_g"),
    *_linear("blocks.{i}.mlp.value", "blocks.{i}.mlp.fc1_x"),
    *_linear("blocks.{i}.mlp.proj", "blocks.{i}.mlp.fc2"),
    *(Row(f"blocks.{{i}}.scale{n}", f"blocks.{{i}}.gamma_{n}", when=_rotary) for n in (1, 2)),
    *(Row(f"blocks.{{i}}.scale{n}", f"blocks.{{i}}.ls{n}.gamma", when=lambda c: not _rotary(c)) for n in (1, 2)),
    *_norm("norm_post", "norm"),
    Row("pool.probe", "attn_pool.latent", ONE_BEFORE),
    *_linear("pool.q", "attn_pool.q"),
    *_linear("pool.kv", "attn_pool.kv"),
    *_linear("pool.out", "attn_pool.proj"),
    *_norm("pool.norm", "attn_pool.norm"),
    *_linear("pool.mlp.fc", "attn_pool.mlp.fc1"),
    *_linear("pool.mlp.proj", "attn_pool.mlp.fc2"),
    *_linear("projection", "head"),
)
"""timm's head has a bias, which is zero in every published file; a trained classifier in its place has another."""

ZERO = "visual.projection.bias"
LOGIT_SCALE = "logit_scale"


def _own(*tables: Iterable[Row]) -> tuple[Row, ...]:
    """All of our names that the tables have, blocks stacked."""
    names = dict.fromkeys(row.ours for rows in tables for row in rows)
    return tuple(Row(name, name.replace(".{i}", "")) for name in names)


@dataclass(frozen=True)
class Layout:
    """A checkpoint layout.

    Attributes:
      name: what commands call it.
      vision: the table of the vision tower.
      text: the table of the text tower, or None where the layout has no place for one.
      forms: the prefixes of (vision, text) that files have; the first is written with a text tower, the last without.
      zero_bias: whether its projection has a bias where the model has none.
    """

    name: str
    vision: tuple[Row, ...]
    text: tuple[Row, ...] | None
    forms: tuple[tuple[str, str | None], ...]
    zero_bias: bool = False


LAYOUTS: Registry[Layout] = Registry(
    "layout",
    {
        layout.name: layout
        for layout in (
            Layout(
                "jaxface",
                _own(META_VISION, [Row("projection.bias", "")], TIMM_VISION),
                _own(META_TEXT),
                (("visual.", "text."), ("", None)),
            ),
            Layout("meta", META_VISION, META_TEXT, (("visual.", ""), ("", None))),
            Layout("timm", TIMM_VISION, None, (("", None),), zero_bias=True),
            Layout("open_clip", TIMM_VISION, META_TEXT, (("visual.trunk.", "text."),), zero_bias=True),
        )
    },
)


def table(layout: Layout, form: tuple[str, str | None], text: bool = True, vision: EncoderConfig | None = None) -> tuple[Row, ...]:
    """All rows with full names on both sides, for files with that form's prefixes; those for one encoder if it is told."""
    wanted = [row for row in layout.vision if vision is None or row.when(vision)]
    rows = [replace(row, ours=f"visual.{row.ours}", theirs=form[0] + row.theirs) for row in wanted]
    if text and layout.text is not None and form[1] is not None:
        rows += [replace(row, ours=f"text.{row.ours}", theirs=form[1] + row.theirs) for row in layout.text]
        rows.append(Row(LOGIT_SCALE, LOGIT_SCALE))
    return tuple(rows)


def recognise(names: Iterable[str]) -> tuple[Layout, tuple[str, str | None], int]:
    """The layout and form that know most of the names, and how many they know."""
    names = set(names)

    def known(candidate: tuple[Layout, tuple[str, str | None]]) -> int:
        patterns = {_pattern(row.theirs) for row in table(*candidate)}
        return sum(_pattern_of(name) in patterns for name in names)

    best = max(((layout, form) for layout in LAYOUTS.values() for form in layout.forms), key=known)
    return *best, known(best)


def decode(rows: Iterable[Row], theirs: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], set[str]]:
    """Our tensors as views of theirs, and the names of theirs that no row asked for. Tensors of a wrong rank stay out of the first.

    What theirs has in several pieces is copied together.
    """
    by_theirs: dict[str, list[Row]] = {}
    for row in rows:
        by_theirs.setdefault(_pattern(row.theirs), []).append(row)
    ours: dict[str, np.ndarray] = {}
    pieces: dict[str, dict[tuple[int, int, int], np.ndarray]] = {}
    surplus = set()
    for name, array in theirs.items():
        matches = by_theirs.get(_pattern_of(name), ())
        if not matches:
            surplus.add(name)
        for row in matches:
            if "{i}" in row.ours and "{i}" not in row.theirs:
                ours |= {row.ours.format(i=i): part for i, part in enumerate(array)} if array.ndim else {}
            elif array.ndim == RANK.get(row.transform, array.ndim):
                number = re.search(r"\.(\d+)\.", name)
                target = row.ours.format(i=number and number[1])
                found = row.transform.read(_share(array, row.share))
                if row.piece is None:
                    ours[target] = found
                else:
                    pieces.setdefault(target, {})[row.piece] = found
    return ours | {name: joined for name, found in pieces.items() if (joined := _joined(found)) is not None}, surplus


def _joined(pieces: Mapping[tuple[int, int, int], np.ndarray]) -> np.ndarray | None:
    """The array that pieces of its last axis make up; None where one is missing or they do not fit."""
    count = next(iter(pieces))[2]
    arrays = [pieces[piece] for piece in sorted(pieces)]
    alike = {(array.shape, array.dtype) for array in arrays}
    return np.concatenate(arrays, -1) if len(arrays) == count and len(alike) == 1 else None


def encode(rows: Iterable[Row], ours: Mapping[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Their tensors, each as the parts that follow one another along its first axis, from ours."""
    depths: dict[str, int] = {}
    for name in ours:
        if match := re.fullmatch(r"(\w+\.)blocks\.(\d+)\..*", name):
            depths[match[1]] = max(depths.get(match[1], 0), int(match[2]) + 1)
    parts: dict[str, list[np.ndarray]] = {}
    for row in rows:
        depth = depths.get(row.ours.split(".")[0] + ".", 0) if "{i}" in row.ours else 1
        for i in range(depth):
            array = ours.get(row.ours.format(i=i))
            if array is not None:
                stacked = "{i}" in row.ours and "{i}" not in row.theirs
                if row.piece is not None:
                    first, last, count = row.piece
                    array = array[..., array.shape[-1] * first // count : array.shape[-1] * last // count]
                parts.setdefault(row.theirs.format(i=i), []).append(row.transform.write(array[None] if stacked else array))
    return parts


def _share(array: np.ndarray, share: tuple[int, int, int] | None) -> np.ndarray:
    if share is None:
        return array
    first, last, count = share
    return array[array.shape[0] * first // count : array.shape[0] * last // count]


def _pattern(name: str) -> str:
    return name.replace("{i}", "#")


def _pattern_of(name: str) -> str:
    """A name with its first number between dots replaced by the block's mark: what both sides of a table are compared by."""
    return re.sub(r"\.\d+\.", ".#.", name, count=1)
