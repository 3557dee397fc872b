"""The tables of Meta's own DINOv2 and DINOv3 files (`.pth`), which have beside the encoder what its training needed."""

from __future__ import annotations

import numpy as np

from jaxface.models.config import EncoderConfig
from weights_convert.rows import ONE_BEFORE, PATCHES, TRANSPOSED, TWO_BEFORE, Row, linear, norm

_START = (
    Row("patch.kernel", "patch_embed.proj.weight", PATCHES),
    Row("patch.bias", "patch_embed.proj.bias"),
    Row("class_token", "cls_token", TWO_BEFORE),
    Row("mask_token", "mask_token", optional=True),
)
_BLOCKS = (
    *norm("blocks.{i}.norm1", "blocks.{i}.norm1"),
    Row("blocks.{i}.attn.qkv.kernel", "blocks.{i}.attn.qkv.weight", TRANSPOSED),
    *linear("blocks.{i}.attn.out", "blocks.{i}.attn.proj"),
    *norm("blocks.{i}.norm2", "blocks.{i}.norm2"),
    *(Row(f"blocks.{{i}}.scale{n}", f"blocks.{{i}}.ls{n}.gamma") for n in (1, 2)),
    *norm("norm_post", "norm"),
)


def _mlp(gate: str, names: dict[str, str]) -> tuple[Row, ...]:
    rows = (row for ours, theirs in names.items() for row in linear(f"blocks.{{i}}.mlp.{ours}", f"blocks.{{i}}.mlp.{theirs}"))
    return tuple(row._replace(when=lambda c: c.gate == gate) for row in rows)


META_DINOV2 = (
    *_START,
    Row("registers", "register_tokens", ONE_BEFORE),
    Row("positions", "pos_embed", ONE_BEFORE),
    *_BLOCKS,
    Row("blocks.{i}.attn.qkv.bias", "blocks.{i}.attn.qkv.bias", when=lambda c: c.qkv_bias == "all"),
    *_mlp("none", {"fc": "fc1", "proj": "fc2"}),
    *_mlp("packed", {"fc": "w12", "proj": "w3"}),
)


def _keyless(c: EncoderConfig) -> bool:
    return c.qkv_bias != "all"


_QKV = "blocks.{i}.attn.qkv.bias"

META_DINOV3 = (
    *_START,
    Row("registers", "storage_tokens", ONE_BEFORE),
    Row("rope_periods", "rope_embed.periods", optional=True),
    *_BLOCKS,
    Row("blocks.{i}.attn.qkv.bias", _QKV, share=(0, 1, 3), piece=(0, 1, 2), when=_keyless),
    Row("blocks.{i}.attn.qkv.key_bias", _QKV, share=(1, 2, 3), when=_keyless, optional=True),
    Row("blocks.{i}.attn.qkv.bias", _QKV, share=(2, 3, 3), piece=(1, 2, 2), when=_keyless),
    Row("blocks.{i}.attn.qkv.bias_mask", "blocks.{i}.attn.qkv.bias_mask", optional=True),
    *_mlp("none", {"fc": "fc1", "proj": "fc2"}),
    *_mlp("separate", {"gate": "w1", "value": "w2", "proj": "w3"}),
    *(row._replace(optional=True) for row in norm("local_norm", "local_cls_norm")),
)
"""The keys' bias is there, and masked, in models without biases, too; the norm of local crops is in the 7B's files."""


def beside_dinov2(c: EncoderConfig, dtype: np.dtype) -> dict[str, np.ndarray]:
    """What Meta's model wants to be given beside an encoder, where no file had it: by our names without what stands before them."""
    return {"mask_token": np.zeros((1, c.width), dtype)}


def beside_dinov3(c: EncoderConfig, dtype: np.dtype) -> dict[str, np.ndarray]:
    """The same for DINOv3: its rotary periods, and zeros for the keys' masked bias."""
    axis = c.width // c.heads // 2
    periods = np.float32(100.0) ** (2 * np.arange(axis // 2, dtype=np.float32) / np.float32(axis))
    mask = np.repeat(np.asarray([1, 0, 1], dtype), c.width)
    keys = {"key_bias": np.zeros(c.width, dtype), "bias_mask": mask}
    keys |= {"bias": np.zeros(2 * c.width, dtype)} if c.qkv_bias == "none" else {}
    blocks = {f"blocks.{i}.attn.qkv.{name}": array for i in range(c.depth) for name, array in keys.items()}
    return beside_dinov2(c, dtype) | {"rope_periods": periods} | blocks
