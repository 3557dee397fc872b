"""StableHLO through `jax.export`: one file with its weights inside, for any batch size, on CPU and CUDA.

with open("model.jax", "rb") as file:
    logits = jax.export.deserialize(file.read()).call(images)  # uint8 [B, S, S, 3] -> {task: [B, C]}
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxface.digests import check_digest
from jaxface.errors import UserError
from jaxface.exports.exporter import Answer, register_exporter
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
    call = jax.export.deserialize(bytearray((folder / FILE).read_bytes())).call
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
    return lambda images: jax.tree.map(np.asarray, call(images)), about


def load_exported(folder: str | Path) -> Answer:
    """An exported model as a function: images uint8 [B, S, S, 3] -> logits [B, C] of each task. Says when JAX's promise to read it is over.

    Raises UserError if the folder is none, is damaged, or cannot be read by this version of JAX.
    """
    folder = Path(folder)
    for name in ("manifest.json", FILE):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no {name}; expected a folder that `python -m jaxface.export RUN --to stablehlo` wrote")
        check_digest(folder / name)
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        until, by = manifest.get("readable_until", ""), manifest["versions"]["jax"]
        if until and until < datetime.date.today().isoformat():
            print(f"note: {folder} was written by JAX {by}, which promised it until {until}: export the run again", file=sys.stderr)
        call = jax.export.deserialize(bytearray((folder / FILE).read_bytes())).call
    except Exception as error:  # of the reader, whatever it was given
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: cannot be read by JAX {jax.__version__} ({reason}): export the run again") from None
    return lambda images: jax.tree.map(np.asarray, call(images))
