"""What a reader of the documentation is taken to have: a checkpoint, a run, data and photos, all of them small."""

from __future__ import annotations

from pathlib import Path

from faces import write_manifest, write_photo
from trained_run import write_trained_run

from jaxface.models.variants import EncoderConfig, TextConfig
from small_models import random_tensors
from weights_convert.checkpoint import write_checkpoint
from weights_convert.towers import Towers

TOWERS = Towers(EncoderConfig(128, 2, 4, 256, 14, 336, output=1024), TextConfig(512, 1, 8, 32, 1024))
"""Images and features have the sizes of PE-Core-L14-336, and widths that tell their heads."""


def write_belongings(folder: Path) -> Path:
    """Fills the folder and returns it."""
    write_checkpoint(folder / "PE-Core-L14-336.pt", TOWERS, random_tensors(TOWERS))
    (folder / "runs").mkdir()
    write_trained_run(folder / "runs", "lp").rename(folder / "runs/dora")
    write_photo(folder / "photo.jpg", seed=1, size=60)
    write_manifest(folder / "faces")
    return folder
