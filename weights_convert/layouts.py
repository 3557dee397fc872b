"""Checkpoint layouts: one table each, of which of our tensors stands where in theirs and how it is turned.

Our names are those of the modules, with blocks counted (`visual.blocks.3.attn.qkv.kernel`). A table is used in both directions:
`decode` reads their tensors as ours, `encode` forms theirs from ours. Both work on views, so that nothing is copied before it is written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from jaxface.models.config import EncoderConfig, TextConfig
from jaxface.registry import Registry
from weights_convert.hugging_face import HF_CLIP, HF_CLIP_TEXT, HF_DINOV2, HF_DINOV3, HF_SIGLIP, HF_SIGLIP_TEXT
from weights_convert.meta_dino import META_DINOV2, META_DINOV3, beside_dinov2, beside_dinov3
from weights_convert.rows import ONE, ONE_BEFORE, PATCHES, RANK, SAME, TRANSPOSED, TWO_BEFORE, Row, Transform, fused_pool, linear, norm

_META_BLOCKS = (
    *norm("blocks.{i}.norm1", "transformer.resblocks.{i}.ln_1"),
    Row("blocks.{i}.attn.qkv.kernel", "transformer.resblocks.{i}.attn.in_proj_weight", TRANSPOSED),
    Row("blocks.{i}.attn.qkv.bias", "transformer.resblocks.{i}.attn.in_proj_bias"),
    *linear("blocks.{i}.attn.out", "transformer.resblocks.{i}.attn.out_proj"),
    *norm("blocks.{i}.norm2", "transformer.resblocks.{i}.ln_2"),
    *linear("blocks.{i}.mlp.fc", "transformer.resblocks.{i}.mlp.c_fc"),
    *linear("blocks.{i}.mlp.proj", "transformer.resblocks.{i}.mlp.c_proj"),
)

META_VISION = (
    Row("patch.kernel", "conv1.weight", PATCHES),
    Row("class_token", "class_embedding"),
    Row("positions", "positional_embedding"),
    *norm("norm_pre", "ln_pre"),
    *_META_BLOCKS,
    Row("blocks.{i}.scale1", "transformer.resblocks.{i}.ls_1.gamma"),
    Row("blocks.{i}.scale2", "transformer.resblocks.{i}.ls_2.gamma"),
    *norm("norm_post", "ln_post"),
    *fused_pool("attn_pool", "attn", "c_fc", "c_proj"),
    Row("projection.kernel", "proj"),
)

META_TEXT = (
    Row("embedding", "token_embedding.weight"),
    Row("positions", "positional_embedding"),
    *_META_BLOCKS,
    *norm("norm", "ln_final"),
    Row("projection.kernel", "text_projection", when=lambda c: not c.output_bias),
    Row("projection.kernel", "text_projection.weight", TRANSPOSED, when=lambda c: c.output_bias),
    Row("projection.bias", "text_projection.bias", when=lambda c: c.output_bias),
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
    *norm("norm_pre", "norm_pre"),
    *norm("blocks.{i}.norm1", "blocks.{i}.norm1"),
    Row("blocks.{i}.attn.qkv.kernel", "blocks.{i}.attn.qkv.weight", TRANSPOSED),
    Row("blocks.{i}.attn.qkv.bias", "blocks.{i}.attn.qkv.bias", when=lambda c: c.qkv_bias == "all"),
    Row("blocks.{i}.attn.qkv.bias", "blocks.{i}.attn.q_bias", piece=(0, 1, 2), when=lambda c: c.qkv_bias == "no key"),
    Row("blocks.{i}.attn.qkv.bias", "blocks.{i}.attn.v_bias", piece=(1, 2, 2), when=lambda c: c.qkv_bias == "no key"),
    *linear("blocks.{i}.attn.out", "blocks.{i}.attn.proj"),
    *norm("blocks.{i}.norm2", "blocks.{i}.norm2"),
    *linear("blocks.{i}.mlp.fc", "blocks.{i}.mlp.fc1"),
    *linear("blocks.{i}.mlp.gate", "blocks.{i}.mlp.fc1_g"),
    *linear("blocks.{i}.mlp.value", "blocks.{i}.mlp.fc1_x"),
    *linear("blocks.{i}.mlp.proj", "blocks.{i}.mlp.fc2"),
    *(Row(f"blocks.{{i}}.scale{n}", f"blocks.{{i}}.gamma_{n}", when=_rotary) for n in (1, 2)),
    *(Row(f"blocks.{{i}}.scale{n}", f"blocks.{{i}}.ls{n}.gamma", when=lambda c: not _rotary(c)) for n in (1, 2)),
    *norm("norm_post", "norm"),
    Row("pool.probe", "attn_pool.latent", ONE_BEFORE),
    *linear("pool.q", "attn_pool.q"),
    *linear("pool.kv", "attn_pool.kv"),
    *linear("pool.out", "attn_pool.proj"),
    *norm("pool.norm", "attn_pool.norm"),
    *linear("pool.mlp.fc", "attn_pool.mlp.fc1"),
    *linear("pool.mlp.proj", "attn_pool.mlp.fc2"),
    *linear("projection", "head"),
)
"""timm's head has a bias, which is zero in every published file; a trained classifier in its place has another."""

Pair = tuple[EncoderConfig, TextConfig | None]
"""A vision tower and, where there is one, a text tower."""
ZERO = "visual.projection.bias"
LOGIT_SCALE, LOGIT_BIAS = "logit_scale", "logit_bias"


def _own(*tables: Iterable[Row]) -> tuple[Row, ...]:
    """All of our names that the tables have, blocks stacked."""
    names = {row.ours: row.optional for rows in tables for row in rows}
    return tuple(Row(name, name.replace(".{i}", ""), optional=optional) for name, optional in names.items())


@dataclass(frozen=True)
class Layout:
    """A checkpoint layout.

    Attributes:
      name: what commands call it.
      vision: the table of the vision tower.
      text: the table of the text tower, or None where the layout has no place for one.
      forms: the prefixes of (vision, text) that files have; the first is written with a text tower, the last without.
      zero_bias: whether its projection has a bias where the model has none.
      scalars: how the scale and the offset of similarities stand in it.
      class_position: whether the class token has a position of its own where there are registers; if not it is part of the token. None
        leaves it as it is.
      beside: what its files have beside the encoder's tensors, where nothing was carried from another file: of a vision tower and a
        dtype, by our names without what stands before them.
      left_out: which names, beside the encoder's, are of what trained it: a regular expression. They are not read.
    """

    name: str
    vision: tuple[Row, ...]
    text: tuple[Row, ...] | None
    forms: tuple[tuple[str, str | None], ...]
    zero_bias: bool = False
    class_position: bool | None = None
    scalars: Transform = SAME
    beside: Callable[[EncoderConfig, np.dtype], Mapping[str, np.ndarray]] = lambda c, dtype: {}
    left_out: str = ""


LAYOUTS: Registry[Layout] = Registry(
    "layout",
    {
        layout.name: layout
        for layout in (
            Layout(
                "jaxface",
                _own(META_VISION, [Row("projection.bias", "")], TIMM_VISION, HF_DINOV2, META_DINOV3),
                _own(META_TEXT),
                (("visual.", "text."), ("", None)),
            ),
            Layout("meta", META_VISION, META_TEXT, (("visual.", ""), ("", None))),
            Layout("timm", TIMM_VISION, None, (("", None),), zero_bias=True, class_position=False),
            Layout("open_clip", TIMM_VISION, META_TEXT, (("visual.trunk.", "text."),), zero_bias=True, class_position=False),
            Layout("meta_dinov2", META_DINOV2, None, (("", None),), class_position=True, beside=beside_dinov2),
            Layout("meta_dinov3", META_DINOV3, None, (("", None),), beside=beside_dinov3, left_out=r"projectors\..*"),
            Layout("hf_dinov2", HF_DINOV2, None, (("", None),), class_position=True),
            Layout("hf_dinov3", HF_DINOV3, None, (("", None),)),
            Layout("hf_clip", HF_CLIP, HF_CLIP_TEXT, (("", ""), ("", None))),
            Layout("hf_siglip", HF_SIGLIP, HF_SIGLIP_TEXT, (("vision_model.", "text_model."), ("", None)), scalars=ONE),
        )
    },
)

_OPTIONAL = {f"visual.{row.ours}" for layout in LAYOUTS.values() for row in layout.vision if row.optional}


def is_carried(ours: str) -> bool:
    """Whether a name of ours is of what is carried from file to file, and no part of an encoder."""
    return numbered(ours) in _OPTIONAL


def carried(rows: Iterable[Row]) -> Callable[[str], bool]:
    """Whether a name of theirs is of such, and of nothing else."""
    rows = list(rows)
    names = {_pattern(row.theirs) for row in rows if row.optional} - {_pattern(row.theirs) for row in rows if not row.optional}
    return lambda theirs: _pattern_of(theirs) in names


def table(layout: Layout, form: tuple[str, str | None], towers: Pair | None = None) -> tuple[Row, ...]:
    """All rows with full names on both sides, for files with that form's prefixes; those for a vision and a text tower if they are told."""
    vision, text = (None, None) if towers is None else towers
    wanted = [row for row in layout.vision if vision is None or row.when(vision)]
    rows = [row._replace(ours=f"visual.{row.ours}", theirs=form[0] + row.theirs) for row in wanted]
    if (towers is None or text is not None) and layout.text is not None and form[1] is not None:
        wanted = [row for row in layout.text if text is None or row.when(text)]
        rows += [row._replace(ours=f"text.{row.ours}", theirs=form[1] + row.theirs) for row in wanted]
        rows += [Row(name, name, layout.scalars) for name in (LOGIT_SCALE, LOGIT_BIAS)]
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
            if row.beside and (row.beside.lstrip("!") in theirs) == row.beside.startswith("!"):
                continue
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


def of_other_rank(rows: Iterable[Row], theirs: Mapping[str, np.ndarray]) -> list[str]:
    """The names, with shapes, of those that stay out for their rank."""
    ranks: dict[str, set[int | None]] = {}
    for row in rows:
        ranks.setdefault(_pattern(row.theirs), set()).add(RANK.get(row.transform))
    known = {name: ranks.get(_pattern_of(name), {None}) for name in theirs}
    return [f"{name} {list(array.shape)}" for name, array in theirs.items() if not known[name] & {None, array.ndim}]


def _joined(pieces: Mapping[tuple[int, int, int], np.ndarray]) -> np.ndarray | None:
    """The array that pieces of its last axis make up; None where one is missing or they do not fit."""
    for count in sorted({piece[2] for piece in pieces}, reverse=True):
        arrays = [pieces[piece] for piece in sorted(pieces) if piece[2] == count]
        if len(arrays) == count and len({(array.shape, array.dtype) for array in arrays}) == 1:
            return np.concatenate(arrays, -1)
    return None


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


def numbered(name: str) -> str:
    """A name with `{i}` for the number of its block, as the tables have it."""
    return re.sub(r"\.\d+\.", ".{i}.", name, count=1)


def _pattern_of(name: str) -> str:
    """A name with its first number between dots replaced by the block's mark: what both sides of a table are compared by."""
    return re.sub(r"\.\d+\.", ".#.", name, count=1)
