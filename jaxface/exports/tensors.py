"""Weights for PyTorch: the merged encoder in Meta's and timm's layout, or PEFT's adapter folder; the heads in a file of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from jaxface.adapters.adapt import merge
from jaxface.adapters.peft_format import load_peft, save_peft
from jaxface.adapters.places import linears
from jaxface.adapters.task_specific import TaskPools
from jaxface.errors import UserError
from jaxface.exports.exporter import Answer, Logits, model_answer, register_exporter
from jaxface.files import write_arrays
from jaxface.models.config import PIXELS
from jaxface.models.encoder import Encoder, at_size
from jaxface.models.heads import Classifier, torch_heads
from jaxface.runs.base import is_run
from jaxface.runs.model import Trained, load_base
from jaxface.weights import load_encoder, save_weights
from weights_convert.checkpoint import unplaced
from weights_convert.towers import Towers

LAYOUTS = ("meta", "timm")
HEADS = "heads.safetensors"
BASE = "base.timm.safetensors"
HEADS_NOTE = (
    "heads.safetensors, per task: norm (BatchNorm1d, eps 1e-5), hidden (Linear, then GELU), out (Linear), where the run has them, on the "
    "encoder's feature"
)
WITHOUT_POOL = {
    "patches": "the mean of its patches' tokens",
    "class": "its class token, the first",
    "both": "its class token and the mean of its patches' tokens, one behind the other",
    "all": "the mean of its tokens, the class token among them",
}


def _heads(model: Classifier) -> dict[str, np.ndarray]:
    return {name: array.astype(np.float32) for name, array in torch_heads(model).items()}


def heads_note(model: Classifier) -> str:
    """What the manifest says of the heads' file."""
    return f"{HEADS_NOTE}: {WITHOUT_POOL.get(model.tokens, model.tokens)}" if model.reads_tokens else HEADS_NOTE


def require_one_pool(trained: Trained) -> None:
    """Raises UserError for an encoder with a pool per task."""
    if isinstance(trained.model.encoder.pool, TaskPools):
        raise UserError(f"{trained.folder}: its encoder has a pool per task, and timm's and Meta's have one: export to stablehlo or onnx")


def timm_arguments(trained: Trained) -> dict[str, Any]:
    """What `timm.create_model` must be told to have our positions: it scales the Perception Encoder's from the grid `ref_feat_shape`."""
    c = trained.model.encoder.config
    side = trained.image_size // c.patch
    return {"img_size": trained.image_size} | ({"ref_feat_shape": [side, side]} if c.rope == "axial" else {})


def pixel_statistics(trained: Trained) -> dict[str, Any]:
    """What others must normalise pixels in 0..1 with, and what their attention must be told where keys have no bias."""
    c = trained.model.encoder.config
    mean, deviation = PIXELS[c.pixels]
    keyless = {"attention": "set qkv_bias_separate of every block's attn, or timm passes an adapter of attn.qkv by"}
    return {"mean": list(mean), "std": list(deviation)} | (keyless if c.qkv_bias == "no key" else {})


def _with_encoder(model: Classifier, encoder: Encoder) -> Answer:
    """The model's answers with another encoder in its place."""
    encoder.dtype = model.encoder.dtype
    model.encoder = encoder
    return model_answer(model)


@register_exporter("safetensors")
def export_safetensors(trained: Trained, folder: Path) -> tuple[Answer, dict[str, Any]]:
    """Writes the merged encoder in every layout, and the heads. Raises UserError for an encoder that cannot be merged."""
    model = trained.merged()
    require_one_pool(trained)
    kept = next((name for name, linear in linears(model.encoder) if isinstance(linear.kernel, nnx.Module)), None)
    if kept is not None:
        raise UserError(f"{trained.folder}: {kept} has an update per task, which no single kernel is: export to stablehlo or onnx")
    layouts = [layout for layout in LAYOUTS if not unplaced(layout, Towers(model.encoder.config))]
    files = {layout: f"encoder.{layout}.safetensors" for layout in layouts}
    for layout, name in files.items():
        encoder = at_size(model.encoder, trained.image_size) if layout == "timm" else model.encoder
        save_weights(encoder, folder / name, layout=layout)
    write_arrays(folder / HEADS, _heads(model), {"format": "pt"})
    answers = [_with_encoder(trained.merged(), load_encoder(folder / name)) for name in files.values()]

    def both(images: np.ndarray) -> Logits:
        """The answers of the file that is farther off."""
        found = [answer(images) for answer in answers]
        ours = model_answer(model)(images)
        return max(found, key=lambda logits: max(np.nan_to_num(np.abs(logits[task] - ours[task]), nan=np.inf).max() for task in ours))

    return both, {"encoders": files, "heads": heads_note(model), "timm": timm_arguments(trained)} | pixel_statistics(trained)


@register_exporter("peft")
def export_peft(trained: Trained, folder: Path) -> tuple[Answer, dict[str, Any]]:
    """Writes PEFT's adapter folder for timm's model, the heads, and the base weights in timm's layout where no file of the user's has them.

    That is where the base is another run, and at another image size than the encoder's, whose positions timm would make otherwise.
    """
    require_one_pool(trained)
    weights, kernels = trained.config.encoder.weights, trained.config.encoder.base
    if kernels != "full":
        raise UserError(
            f"{trained.folder}: its frozen kernels are {kernels}, and PEFT's folder stands on the weights as they are, which would answer "
            "otherwise: export to run, safetensors, onnx or stablehlo"
        )
    base = load_base(trained.config, trained.base, trained.places).encoder
    own_base = trained.image_size != base.config.image_size or (trained.base is not None and is_run(trained.base))
    (folder / BASE).unlink(missing_ok=True)  # an earlier export's
    save_peft(trained.model.encoder, folder, base=BASE if own_base else weights)
    if own_base:
        base = at_size(base, trained.image_size)
        save_weights(base, folder / BASE, layout="timm")
    write_arrays(folder / HEADS, _heads(trained.model), {"format": "pt"})
    about: dict[str, Any] = {"base": BASE if own_base else weights, "base_sha256": trained.base_fingerprint, "tokens": trained.model.tokens}
    about |= {"heads": heads_note(trained.model), "timm": timm_arguments(trained)}
    about |= pixel_statistics(trained)
    return _with_encoder(trained.merged(), merge(load_peft(base, folder))), about
