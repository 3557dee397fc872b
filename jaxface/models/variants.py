"""Every variant of every family by its name; `VARIANTS.add("Mine-S16", EncoderConfig(...))` makes a user's own one known beside them."""

from __future__ import annotations

from jaxface.models.config import EncoderConfig, TextConfig
from jaxface.models.families import clip, dinov2, dinov3, pe, siglip
from jaxface.registry import Registry

__all__ = ["TEXT_VARIANTS", "VARIANTS", "EncoderConfig", "TextConfig", "get_variant"]

VARIANTS: Registry[EncoderConfig] = Registry("encoder", pe.VISION | dinov3.VISION | dinov2.VISION | clip.VISION | siglip.VISION)
get_variant = VARIANTS.get

TEXT_VARIANTS: Registry[TextConfig] = Registry("text tower", pe.TEXT | clip.TEXT | siglip.TEXT)
