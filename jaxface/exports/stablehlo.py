"""StableHLO through `jax.export`: one file with its weights inside, for any batch size, on CPU and CUDA.

with open("model.jax", "rb") as file:
    logits = jax.export.deserialize(file.read()).call(images)  # uint8 [B, S, S, 3] -> {task: [B, C]}
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxface.exports.exporter import LOADERS, Answer, register_exporter
from jaxface.files import aside
from jaxface.kernels.attention import ANYWHERE
from jaxface.models.encoder import normalize_images, use_attention
from jaxface.runs.model import Trained

PLATFORMS = ("cpu", "cuda")
FILE = "model.jax"
PROMISED = datetime.timedelta(days=182)
"""For how long newer versions of JAX promise to read what this one exports (docs.jax.dev, "Exporting and serialization")."""


@register_exporter("stablehlo")
def export_stablehlo(trained: Trained, folder: Path) -> tuple[Answer, dict[str, Any]]:
    """Writes the merged model as a serialised `jax.export.Exported`, which holds StableHLO of a versioned, portable kind."""
    model, side = trained.merged(), trained.image_size
    use_attention(model.encoder, ANYWHERE)
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape(f"batch, {side}, {side}, 3"), np.uint8)
    exported = jax.export.export(jax.jit(lambda images: model(normalize_images(images))), platforms=PLATFORMS)(shape)
    with aside(folder / FILE) as temporary:
        temporary.write_bytes(exported.serialize())
    today = datetime.date.today()
    about = {
        "checked_by": "JAX alone",
        "made": today.isoformat(),
        "readable_until": (today + PROMISED).isoformat(),
        "promise": f"JAX promises to read it with versions up to six months newer than the {jax.__version__} that wrote it",
        "platforms": PLATFORMS,
        "use": f"jax.export.deserialize(bytearray(open('{FILE}', 'rb').read())).call(images)",
        "calling_convention_version": exported.calling_convention_version,
    }
    return open_stablehlo(folder), about


@LOADERS.register("stablehlo")
def open_stablehlo(folder: Path) -> Answer:
    """The answers of JAX alone."""
    call = jax.export.deserialize(bytearray((folder / FILE).read_bytes())).call
    return lambda images: jax.tree.map(np.asarray, call(images))
