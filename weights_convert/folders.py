"""Checkpoints of several files: a folder as Hugging Face's libraries write one, and shards with an index."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxface.errors import UserError
from jaxface.files import read_object
from jaxface.models.config import PIXELS
from jaxface.models.variants import VARIANTS
from weights_convert.names import of_timm

WEIGHTS = (
    *("model.safetensors", "model.safetensors.index.json", "open_clip_model.safetensors"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json", "open_clip_pytorch_model.bin"),
)
"""Files that hold a folder's weights, the first that is there being taken."""
INDEX = ".index.json"
LIMIT = 4 * 2**20
"""Bytes of an index or a configuration: one line a tensor."""
HARMLESS = {
    *("img_size", "num_classes", "global_pool", "dynamic_img_size", "in_chans"),
    *("drop_rate", "drop_path_rate", "proj_drop_rate", "attn_drop_rate", "pos_drop_rate"),
}
"""Arguments of timm's models that the tensors tell, or that change no feature."""
FAMILY = "vit_pe_"
"""How timm's names of the Perception Encoders begin."""
ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh", "silu": "silu"}
"""By transformers' words for them."""


def weights_in(folder: Path) -> Path | None:
    """The file that holds a folder's weights, or None if it has none of `WEIGHTS`."""
    return next((path for name in WEIGHTS if (path := folder / name).is_file()), None)


def weight_file(path: Path) -> Path:
    """A checkpoint's file, or that of a folder. Raises UserError for a folder without one."""
    found = weights_in(path) if path.is_dir() else path
    if found is None:
        raise UserError(f"{path}: a folder with none of {', '.join(WEIGHTS)}; expected a checkpoint")
    return found


class Told(NamedTuple):
    """What the configurations of a folder say of its model that no tensor does; None where they say nothing.

    Attributes:
      activation: of the MLPs.
      pixels: how they are normalised, a name of `PIXELS`.
      middle: whether of a whole photo the middle is taken; else it is squashed.
    """

    activation: str | None = None
    pixels: str | None = None
    middle: bool | None = None


PREPROCESSING = (
    ("config.json", "pretrained_cfg", "mean", "std", "crop_mode"),
    ("open_clip_config.json", "preprocess_cfg", "mean", "std", "resize_mode"),
    ("preprocessor_config.json", "", "image_mean", "image_std", ""),
)
"""Where timm, open_clip and transformers have it: the file, the part of it, and the keys."""


def told_by(folder: Path) -> Told:
    """What a folder says. Raises UserError for what is none of the known ways, and as `told_activation`."""
    pixels = middle = None
    for name, part, mean, deviation, crop in PREPROCESSING:
        if (folder / name).is_file():
            found = read_object(folder / name, limit=LIMIT)
            found = found.get(part) if part else found
            said: dict[str, Any] = found if isinstance(found, dict) else {}
            if said.get(mean) is not None and said.get(deviation) is not None and said.get("do_normalize") is not False:
                pixels = _statistics(folder / name, [said[mean], said[deviation]])
            middle = {"squash": False, "center": True, "shortest": True}.get(str(said.get(crop)), middle)
    return Told(told_activation(folder), pixels, middle)


def _statistics(path: Path, said: Any) -> str:
    """The name of a mean and a deviation. Raises UserError for none of the known ones."""
    for name, known in PIXELS.items():
        try:
            if np.allclose(np.asarray(said, float), known, atol=1e-3):
                return name
        except (TypeError, ValueError):
            break
    raise UserError(f"{path}: pixels of mean and deviation {str(said)[:100]}, which are none of {', '.join(PIXELS)}")


def told_activation(folder: Path) -> str | None:
    """The activation of the model that a folder's configuration names, timm's or transformers', where it does.

    Raises UserError if that is no model of the variants' kinds, or one with arguments that no tensor tells.
    """
    told = None
    for name in ("config.json", "open_clip_config.json"):
        if (folder / name).is_file():
            config = read_object(folder / name, limit=LIMIT)
            vision = config.get("model_cfg", config)
            vision = vision.get("vision_cfg", vision) if isinstance(vision, dict) else {}
            found = vision.get("architecture") or vision.get("timm_model_name") if isinstance(vision, dict) else None
            changed = vision.get("model_args") or vision.get("timm_model_kwargs") or {} if isinstance(vision, dict) else {}
            if odd := sorted(set(changed) - HARMLESS):
                raise UserError(f"{folder / name}: it says {odd[0][:60]} of its model, and what that changes is not known here")
            variant = None if found is None else of_timm(str(found))
            if found is not None and variant is None and not str(found).startswith(FAMILY):
                raise UserError(f"{folder / name}: the model is {str(found)[:60]!r}, of none of the kinds that are known")
            own = config.get("vision_config", config)
            hugging = ACTIVATIONS.get(str(own.get("hidden_act"))) if isinstance(own, dict) else None
            whole = config.get("model_cfg")
            native = isinstance(whole, dict) and isinstance(whole.get("vision_cfg"), dict) and found is None  # open_clip's own towers
            clip = ("quick_gelu" if whole.get("quick_gelu") else "gelu") if native else None
            told = VARIANTS[variant].activation if variant else clip or hugging or told
    return told


def shards(index: Path) -> dict[str, list[str]]:
    """The files that an index names, each with the tensors that it is to hold. Raises UserError for an index that is none."""
    places = read_object(index, limit=LIMIT).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{index}: has no weight_map: expected the file of each tensor")
    files: dict[str, list[str]] = {}
    for tensor, name in places.items():
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.(safetensors|bin|pt)", name) or name.endswith(INDEX):
            raise UserError(f"{index}: {tensor[:80]} is to be in {str(name)[:80]!r}: expected a file beside the index")
        files.setdefault(name, []).append(tensor)
    for name in files:
        if not (index.parent / name).is_file():
            raise UserError(f"{index}: the shard {name} is missing: fetch every file that the index names")
    return files


def files_of(path: Path) -> list[Path]:
    """The files that hold a checkpoint: the one named, those of a folder, those that an index names. Raises UserError as `shards`."""
    path = weight_file(path)
    return [path, *(path.parent / name for name in sorted(shards(path)))] if path.name.endswith(INDEX) else [path]
