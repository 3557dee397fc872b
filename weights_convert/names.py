"""What other libraries call the variants."""

from __future__ import annotations

import re

from jaxface.models.config import EncoderConfig
from jaxface.models.variants import VARIANTS

_WORDS = {
    **{"T": "tiny", "S": "small", "B": "base", "L": "large", "G": "gigantic", "g": "giant", "H": "huge", "bigG": "gigantic"},
    **{"S+": "small_plus", "H+": "huge_plus", "7B": "7b", "SO400M": "so400m", "gopt": "giantopt"},
}
_SIZE = r"(bigG|SO400M|gopt|S\+|H\+|7B|[TSBLGHg])(\d+)"
_TIMM = (
    (rf"PE-(Core|Lang|Spatial)-{_SIZE}-(\d+)", lambda m: f"vit_pe_{m[1].lower()}_{_WORDS[m[2]]}_patch{m[3]}_{m[4]}"),
    (rf"DINOv3-{_SIZE}(-qkvb)?", lambda m: f"vit_{_WORDS[m[1]]}_patch{m[2]}_dinov3{'_qkvb' if m[3] else ''}"),
    (rf"EUPE-{_SIZE}", lambda m: f"vit_{_WORDS[m[1]]}_patch{m[2]}_dinov3_qkvb"),
    (rf"DINOv2-{_SIZE}(-reg4)?", lambda m: f"vit_{_WORDS[m[1]]}_patch{m[2]}{'_reg4' if m[3] else ''}_dinov2"),
    (rf"(?:OpenCLIP|LAION2B)-{_SIZE}-(\d+)", lambda m: f"vit_{_WORDS[m[1]]}_patch{m[2]}_clip_{m[3]}"),
    (rf"(?:CLIP|MetaCLIP|DFN)-{_SIZE}-(\d+)", lambda m: f"vit_{_WORDS[m[1]]}_patch{m[2]}_clip_quickgelu_{m[3]}"),
    (rf"SigLIP2?-{_SIZE}-(\d+)", lambda m: f"vit_{_WORDS[m[1]]}_patch{m[2]}_siglip_{m[3]}"),
)


def timm_name(variant: str) -> str | None:
    """timm's name of a variant, None for one that it does not have."""
    return next((name(match) for pattern, name in _TIMM if (match := re.fullmatch(pattern, variant))), None)


def timm_class(config: EncoderConfig) -> tuple[str, str]:
    """timm's class of an encoder, and the module that it is in."""
    return ("Eva", "timm.models.eva") if config.rope != "none" else ("VisionTransformer", "timm.models.vision_transformer")


def of_timm(architecture: str) -> str | None:
    """The first variant that timm calls so, whatever tag of trained weights follows; None for a model that is none of the variants."""
    architecture = architecture.partition(".")[0]
    return next((variant for variant in VARIANTS if timm_name(variant) == architecture), None)
