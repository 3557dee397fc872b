"""The PyTorch originals: Meta's code, timm and open_clip, built for a configuration and filled with the same tensors as ours.

Only comparisons, the checks of exports and tests use this; it takes torch and, for Meta's, a checkout of its perception_models repository.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxface.errors import UserError
from jaxface.models.variants import VARIANTS, EncoderConfig
from jaxface.registry import Registry
from weights_convert.checkpoint import layout_tensors
from weights_convert.towers import Towers

OPEN_CLIP_NAMES = {
    "PE-Core-G14-448": "PE-Core-bigG-14-448",
    "PE-Core-L14-336": "PE-Core-L-14-336",
    "PE-Core-B16-224": "PE-Core-B-16",
    "PE-Core-S16-384": "PE-Core-S-16-384",
    "PE-Core-T16-384": "PE-Core-T-16-384",
}


@dataclass
class Original:
    """A PyTorch model and where its parts are.

    Attributes:
      vision: the vision tower, images [B, 3, H, W] -> features, or tokens without a pool.
      tokens: the same, before pooling.
      start: the module whose result enters the first block.
      blocks: the vision tower's blocks in order.
      any_size: whether it takes images of other sizes than its own as the Perception Encoder means them.
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

    torchvision, which timm and open_clip import, may be built for another torch: its operators are declared beforehand, so that the
    import does not fail on one that nothing here calls.
    """
    import importlib

    try:
        import torch

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


@contextmanager
def captured(blocks: list[Any]) -> Iterator[list[Any]]:
    """Collects what each block returns while the context lasts."""
    results: list[Any] = []
    hooks = [block.register_forward_hook(lambda _, __, result: results.append(result.detach())) for block in blocks]
    try:
        yield results
    finally:
        for hook in hooks:
            hook.remove()


def timm_name(config: EncoderConfig) -> str | None:
    """timm's name of a variant of the family, None for others."""
    sizes = {"T": "tiny", "S": "small", "B": "base", "L": "large", "G": "gigantic"}
    for name, known in VARIANTS.items():
        match = re.fullmatch(r"PE-(Core|Lang|Spatial)-([TSBLG])(\d+)-(\d+)", name)
        if known == config and match:
            return f"vit_pe_{match[1].lower()}_{sizes[match[2]]}_patch{match[3]}_{match[4]}"
    return None


def timm_vision(config: EncoderConfig) -> Any:
    """timm's model: the registered one for a variant of the family, else its class with the same arguments as those.

    Raises UserError where timm is not installed.
    """
    torch, timm, eva = import_torch("timm", "timm.models.eva")
    pooled = {"num_classes": config.output or 0} if config.pool else {"num_classes": 0, "global_pool": ""}
    if name := timm_name(config):
        return timm.create_model(name, **pooled)
    pooled |= {"global_pool": "map"} if config.pool else {"use_post_transformer_norm": config.norm_post, "use_fc_norm": False}
    return eva.Eva(
        img_size=config.image_size,
        patch_size=config.patch,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=(config.mlp_width + 0.5) / config.width,
        attn_type="rope",
        class_token=config.class_token,
        use_pre_transformer_norm=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(config.grid, config.grid),
        rope_grid_offset=float(config.class_token),
        rope_grid_indexing="xy",
        attn_pool_num_heads=config.pool_heads,
        attn_pool_mlp_ratio=4.0,
        init_values=0.1 if config.layer_scale else None,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-5),
        **pooled,
    )


@ORIGINALS.register("timm")
def _timm(towers: Towers, tensors: dict[str, np.ndarray], _: Path | None) -> Original:
    model = timm_vision(towers.vision).eval()
    model.load_state_dict(state_dict("timm", towers, tensors))
    return Original(model, model.forward_features, model.norm_pre, list(model.blocks), False, None, [], [model])


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
