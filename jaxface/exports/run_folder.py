"""A run with its base weights in one folder, which needs nothing else: it opens as a run does, on any machine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxface.digests import record_digests
from jaxface.errors import UserError
from jaxface.exports.exporter import LOADERS, Answer, model_answer, register_exporter
from jaxface.runs.base import PACKED, is_run
from jaxface.runs.best import model_digest
from jaxface.runs.folder import EVALUATION, OUTCOME
from jaxface.runs.model import Trained, load_trained
from weights_convert.checkpoint import convert
from weights_convert.folders import INDEX


@register_exporter("run")
def export_packed(trained: Trained, folder: Path) -> tuple[Answer, dict[str, Any]]:
    """Writes the run folder without its checkpoints, and below it, in `base/`, the base weights: a file, or a run packed likewise."""
    pack(trained, folder)
    return open_packed(folder), {"base": PACKED}


@LOADERS.register("run")
def open_packed(folder: Path) -> Answer:
    """The answers of the run, in float32."""
    return model_answer(load_trained(folder, dtype=jnp.float32).merged())


def pack(trained: Trained, folder: Path) -> None:
    """Copies what a run is made of, again where an earlier copy of it was left unfinished.

    Raises UserError for a folder that holds another run, or that cannot be written.
    """
    best, aside = folder / "best", folder / ".best.partial"
    if (best.exists() and not _is_of(best, trained)) or folder.resolve() == trained.folder.resolve():
        raise UserError(f"{folder} holds a run already: choose another --out, or remove that folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in (aside, best):
            shutil.rmtree(left, ignore_errors=True)
        shutil.copytree(trained.folder / "best", aside, ignore=shutil.ignore_patterns(".*"))
        aside.rename(best)
        names = [name for name in dict.fromkeys((*OUTCOME, *EVALUATION)) if (trained.folder / name).is_file()]
        for name in names:
            shutil.copyfile(trained.folder / name, folder / name)
        record_digests(folder, names)
        if trained.base is not None and not is_run(trained.base):
            (folder / PACKED).mkdir(exist_ok=True)
            several = trained.base.is_dir() or trained.base.name.endswith(INDEX)
            name = "base.safetensors" if several else trained.base.name
            if several:
                convert(trained.base, folder / PACKED / name)
            else:
                shutil.copyfile(trained.base, folder / PACKED / name)
            record_digests(folder / PACKED, [name])
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise UserError(f"{error.filename or folder}: cannot be copied: {error.strerror or error}") from None
    if trained.base is not None and is_run(trained.base):
        pack(load_trained(trained.base, trained.places), folder / PACKED / trained.base.name)


def _is_of(best: Path, trained: Trained) -> bool:
    """Whether what stands there is this very model."""
    return (best / "trained.safetensors").is_file() and model_digest(best.parent) == trained.digest
