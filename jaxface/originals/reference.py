"""The PyTorch originals: Meta's code, timm and open_clip, built for a configuration and filled with the same tensors as ours.

Only comparisons, the checks of exports and tests use this; it takes torch and, for Meta's, a checkout of its perception_models repository.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxface.errors import UserError
from jaxface.models.config import PIXELS, EncoderConfig
from jaxface.models.variants import VARIANTS
from jaxface.registry import Registry
from weights_convert.checkpoint import layout_tensors
from weights_convert.names import timm_name
from weights_convert.towers import Towers


@dataclass
class Original:
    """A PyTorch model and where its parts are.

    Attributes:
      vision: the vision tower, images [B, 3, H, W] -> features, or tokens without a pool.
      tokens: the same, before pooling.
      start: the module whose result enters the first block.
      blocks: the vision tower's blocks in order.
      any_size: whether it takes images of other sizes than its own as ours.
      encode_text: ids [B, L] -> features, or None.
      text_blocks: the text tower's blocks.
      modules: what `to` moves.
    """

    vision: Callable[[Any], Any]
    tokens: Callable[[Any], Any]
    start: Any
    blocks: list[Any]
    any_size: bool
    encode_text: Callable[[Any], Any] | None
    text_blocks: list[Any]
    modules: list[Any]


ORIGINALS: Registry[Callable[[Towers, dict[str, np.ndarray], Path | None], Original]] = Registry("original")
"""By layout: how to build the original from the towers' shape, our tensors and the folder of Meta's code."""


def build_original(against: str, towers: Towers, tensors: dict[str, np.ndarray], meta_code: Path | None = None) -> Original:
    """The original, in eval mode, with the tensors (our names, see `weights_convert.Checkpoint`) loaded strictly.

    Raises UserError if it is unknown, or what it needs is not installed.
    """
    return ORIGINALS.get(against)(towers, tensors, meta_code)


@cache
def import_torch(*names: str) -> list[Any]:
    """torch and the modules named. Raises UserError if one is missing.

    torchvision, which timm and open_clip import, may be built for another torch: then its operators are declared for it, so that the
    import does not fail on one that nothing here calls.
    """
    try:
        import torch

        if names and find_spec("torchvision"):
            try:
                importlib.import_module("torchvision")
            except RuntimeError:  # its library does not load here, and its operators are not there
                _declare_operators(torch)
        return [torch, *(importlib.import_module(name) for name in names)]
    except ImportError as error:
        raise UserError(
            f"the original takes {error.name}: pip install 'jaxface[reference]', then pip install --no-deps {error.name}"
        ) from None


@cache
def _declare_operators(torch: Any) -> Any:
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library  # the declaration lives as long as this


def state_dict(layout: str, towers: Towers, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """The tensors as a torch state dict of that layout."""
    import torch

    def tensor(array: np.ndarray) -> Any:
        array = np.array(array, order="C")
        bits = array.dtype == ml_dtypes.bfloat16
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16) if bits else torch.from_numpy(array)

    return {name: tensor(array) for name, array in layout_tensors(layout, towers, tensors).items()}


def variant_of(config: EncoderConfig) -> str | None:
    """The name of a configuration that timm has, too, or None."""
    return next((name for name, known in VARIANTS.items() if known == config and timm_name(name)), None)


TIMM_POOLS = {"tokens": "", "class": "token", "mean": "avg"}
"""timm's words for what the tokens become, by `EncoderConfig.readout`."""


def timm_vision(config: EncoderConfig) -> Any:
    """timm's model: the registered one for a variant, else its class with the same arguments as those; with our activation and readout.

    Raises UserError where timm is not installed, or has no such model.
    """
    torch, timm, eva, vit, layers = import_torch("timm", "timm.models.eva", "timm.models.vision_transformer", "timm.layers")
    c = config
    if not c.pool and c.readout not in TIMM_POOLS:
        raise UserError(f"timm has no readout {c.readout!r}")
    options: dict[str, Any] = {"num_classes": c.output or 0, "global_pool": "map" if c.pool else TIMM_POOLS[c.readout]}
    build = eva.Eva if c.rope != "none" else vit.VisionTransformer
    options |= {} if c.rope == "axial" else {"dynamic_img_size": True}
    options |= {} if c.rope != "none" else {"act_layer": torch.nn.SiLU if c.gate == "packed" else layers.get_act_layer(c.activation)}
    if name := variant_of(c):
        return adaptable(timm.create_model(timm_name(name), **options))
    hidden = c.mlp_width * (2 if c.gate == "packed" else 1)
    options |= {
        "img_size": c.image_size,
        "patch_size": c.patch,
        "embed_dim": c.width,
        "depth": c.depth,
        "num_heads": c.heads,
        "mlp_ratio": (hidden + 0.5) / c.width,
        "class_token": c.class_token,
        "init_values": 0.1 if c.layer_scale else None,
        "norm_layer": partial(torch.nn.LayerNorm, eps=c.epsilon),
    }
    return adaptable(build(**options, **(_eva_options(c) if build is eva.Eva else _vit_options(c, vit))))


def adaptable(model: Any) -> Any:
    """The model, its fused qkv kernels called as modules, which is where an adapter stands; the results are the same."""
    for block in model.blocks:
        if hasattr(block.attn, "qkv_bias_separate"):
            block.attn.qkv_bias_separate = True
    return model


def _eva_options(c: EncoderConfig) -> dict[str, Any]:
    ropes: dict[str, dict[str, Any]] = {
        "axial": {"ref_feat_shape": (c.grid, c.grid), "rope_grid_offset": float(c.class_token), "rope_grid_indexing": "xy"},
        "unit": {"rope_type": "dinov3", "rope_temperature": 100, "rope_rotate_half": True},
    }
    return ropes[c.rope] | {
        "attn_type": "rope" if c.qkv_bias == "all" else "eva",
        "qkv_bias": c.qkv_bias != "none",
        "use_rot_pos_emb": True,
        "use_abs_pos_emb": c.positions,
        "num_reg_tokens": c.registers,
        "use_pre_transformer_norm": c.norm_pre,
        "use_post_transformer_norm": c.norm_post,
        "use_fc_norm": False,
        "swiglu_mlp": c.gate == "separate",
        "swiglu_align_to": int(c.gate == "separate"),
        "attn_pool_num_heads": c.pool_heads,
        "attn_pool_mlp_ratio": c.pool_hidden / c.width,
    }


def _vit_options(c: EncoderConfig, vit: Any) -> dict[str, Any]:
    options = {
        "reg_tokens": c.registers,
        "no_embed_class": not c.placed,
        "pre_norm": c.norm_pre,
        "final_norm": c.norm_post,
        "fc_norm": False,
        "qkv_bias": c.qkv_bias == "all",
    }
    return options | ({"mlp_layer": vit.SwiGLUPacked} if c.gate == "packed" else {})


def normalised(model: Callable[[Any], Any], config: EncoderConfig) -> Callable[[Any], Any]:
    """A torch model that takes images [B, 3, H, W] in -1..1, whatever it was trained with."""
    mean, deviation = PIXELS[config.pixels]

    def call(images: Any) -> Any:
        if set(mean + deviation) == {0.5}:
            return model(images)
        shift, scale = (images.new_tensor(values)[:, None, None] for values in (mean, deviation))
        return model((images / 2 + 0.5 - shift) / scale)

    return call


@ORIGINALS.register("timm")
def _timm(towers: Towers, tensors: dict[str, np.ndarray], _: Path | None) -> Original:
    c = towers.vision
    model = timm_vision(c).eval()
    model.load_state_dict(state_dict("timm", towers, tensors))
    features, tokens = normalised(model, c), normalised(model.forward_features, c)
    return Original(features, tokens, model.norm_pre, list(model.blocks), c.rope != "axial", None, [], [model])


@ORIGINALS.register("open_clip")
def _open_clip(towers: Towers, tensors: dict[str, np.ndarray], _: Path | None) -> Original:
    _, open_clip = import_torch("open_clip.model")
    text = towers.text
    if text is None:
        raise UserError("open_clip compares both towers, and the checkpoint has no text tower: compare against timm")
    vision_cfg = {"timm_model_name": "vit_pe_core_tiny_patch16_384", "timm_pool": "map", "timm_proj": None}
    text_cfg = {
        "context_length": text.context,
        "vocab_size": text.vocabulary,
        "width": text.width,
        "heads": text.heads,
        "layers": text.depth,
    }
    model = open_clip.CustomTextCLIP(text.output, vision_cfg, text_cfg)
    model.visual.trunk = timm_vision(towers.vision)
    model.eval().load_state_dict(state_dict("open_clip", towers, tensors))
    trunk = model.visual.trunk
    blocks = list(model.text.transformer.resblocks)
    return Original(
        model.encode_image, trunk.forward_features, trunk.norm_pre, list(trunk.blocks), False, model.encode_text, blocks, [model]
    )


def import_meta(code: Path | None) -> Any:
    """Meta's `core.vision_encoder.pe` from a checkout of its repository. Raises UserError if it is not there."""
    if code is None or not (code / "core" / "vision_encoder" / "pe.py").is_file():
        raise UserError(f"{code}: no core/vision_encoder/pe.py; expected --meta-code DIR, a checkout of facebookresearch/perception_models")
    import_torch("timm.layers")
    sys.path.insert(0, str(code))
    try:
        return import_torch("core.vision_encoder.pe")[1]
    finally:
        sys.path.remove(str(code))


@ORIGINALS.register("meta")
def _meta(towers: Towers, tensors: dict[str, np.ndarray], code: Path | None) -> Original:
    pe = import_meta(code)
    config = towers.vision
    arguments = {
        "patch_size": config.patch,
        "width": config.width,
        "layers": config.depth,
        "heads": config.heads,
        "mlp_ratio": (config.mlp_width + 0.5) / config.width,
        "use_ln_post": config.norm_post,
        "ls_init_value": 0.1 if config.layer_scale else None,
        "image_size": config.image_size,
        "use_cls_token": config.class_token,
        "output_dim": config.output,
        "attn_pooler_heads": config.pool_heads,
        "pool_type": "attn" if config.pool else "none",
    }
    text = towers.text
    vision = pe.VisionTransformer(**arguments)
    model = vision
    if text is not None:
        shape = {"context_length": text.context, "width": text.width, "heads": text.heads, "layers": text.depth, "output_dim": text.output}
        model = pe.TextTransformer(**shape, vocab_size=text.vocabulary)
        model.visual = vision
        model.logit_scale = import_torch()[0].nn.Parameter(import_torch()[0].zeros(()))
    model.eval().load_state_dict(state_dict("meta", towers, tensors))
    tokens = partial(vision.forward_features, norm=True)
    encode_text, text_blocks = (None, []) if text is None else (model, list(model.transformer.resblocks))
    return Original(vision, tokens, vision.ln_pre, list(vision.transformer.resblocks), True, encode_text, text_blocks, [model])
