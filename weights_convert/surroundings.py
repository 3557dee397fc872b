"""What stands around an encoder in a file: words before the names of its tensors, and a trained classifier where it projects."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from jaxface.errors import UserError
from weights_convert.tensor_files import TensorFile
from weights_convert.tensor_parts import some

Classifier = Literal["refuse", "drop", "keep"]
ANCHORS = ("patch_embed.proj.weight", "conv1.weight", "patch.kernel", "embeddings.cls_token")
"""A tensor of the start of each layout, without what may stand before it."""


def _prefixes(names: Iterable[str]) -> Iterator[str]:
    """What wrappers put before names (`module.`, `_orig_mod.`, `timm_model.`, `model.`, ...), known by the patch embedding's."""
    for name in names:
        match = re.fullmatch(rf"((?:[a-zA-Z_]\w*\.)*?)(?:visual\.(?:trunk\.)?)?(?:{'|'.join(map(re.escape, ANCHORS))})", name)
        if match and match[1]:
            yield match[1]


def without_prefix(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors without what a wrapper put before every name."""
    for prefix in _prefixes(tensors):
        if all(other.startswith(prefix) for other in tensors):
            return {other.removeprefix(prefix): array for other, array in tensors.items()}
    return dict(tensors)


def require_alone(path: str | Path, names: Iterable[str]) -> None:
    """Raises UserError for tensors that are no encoder's beside one whose names all begin alike."""
    prefix = next(_prefixes(names), None)
    others = [name for name in names if prefix and not name.startswith(prefix)]
    if others:
        raise UserError(f"{path}: beside the encoder ({prefix}...) stand {some('of something else', others)}: save the encoder alone")


def require_one_resolution(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Raises UserError for a NaFlex model's tensors: its patch embedding takes patches that were cut out, of pictures of any shape."""
    for name, array in tensors.items():
        if re.search(r"(^|\.)embeds\.proj\.weight$", name) or (name.endswith("embeddings.patch_embedding.weight") and array.ndim == 2):
            raise UserError(
                f"{path}: a model of several resolutions at once (NaFlex, by its {name[:80]} {list(array.shape)}), which is not carried: "
                "take the weights of one resolution"
            )


def settle_classifier(file: TensorFile, prefix: str, classifier: Classifier) -> str:
    """Keeps or drops timm's `head` where it is a classifier and no projection. Returns why it is refused, if it is.

    A projection has a bias of zeros, or none; only towers with an attention pool, or with norms before and behind their blocks as CLIP's
    have, project.
    """
    weight, bias = (f"{prefix}head.{part}" for part in ("weight", "bias"))
    if weight not in file.tensors:
        return ""
    trained = bias in file.tensors and bool(np.any(file.tensors[bias]))
    norms = all(f"{prefix}{name}.weight" in file.tensors for name in ("norm_pre", "norm"))
    pooled = norms or any(name.startswith(f"{prefix}attn_pool.") for name in file.tensors)
    if pooled and (not trained or classifier == "keep"):
        return ""
    file.tensors = {name: array for name, array in file.tensors.items() if name not in (weight, bias)}
    if classifier == "drop":
        return ""
    why = "its bias is not zero" if trained else "the tower has no feature to project"
    hint = "drop leaves it out" + (", keep takes it as the projection with its bias" if pooled else "")
    return f"{prefix}head is a trained classifier, not the projection ({bias}: {why}): say classifier: {hint}"
