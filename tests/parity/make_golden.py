"""Writes the files in `golden/`: what Meta's own code makes of the small models, in double precision.

    git clone https://github.com/facebookresearch/perception_models
    PYTHONPATH=tests python tests/parity/make_golden.py perception_models

Each file holds, for every image size in patches, the features ("ROWSxCOLUMNS") and how far Meta's own float32 is from them
("ROWSxCOLUMNS error": largest difference over largest value); and the text tower's features, if there is one ("text").
The parameters and the images are those of `small_models`, made again wherever they are needed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from jaxface.originals.reference import build_original, import_torch
from small_models import KINDS, random_ids, random_images, random_tensors

FOLDER = Path(__file__).parent / "golden"
SIZES = ((7, 3), (6, 6))
"""Image sizes in patches: a tall one that is longer and narrower than the model's own, and a larger square."""


def golden_path(kind: str) -> Path:
    """The file of a kind of model."""
    return FOLDER / f"{kind.replace(',', '').replace(' ', '_')}.npz"


def golden_images(kind: str, rows: int, columns: int) -> np.ndarray:
    """Twelve images for a feature each, two where every token is compared."""
    config = KINDS[kind].vision
    return random_images(12 if config.pool else 2, rows * config.patch, columns * config.patch)


def make(kind: str, code: Path) -> dict[str, np.ndarray]:
    """The arrays of one file."""
    (torch,) = import_torch()
    arrays: dict[str, np.ndarray] = {}
    models = [build_original("meta", KINDS[kind], random_tensors(KINDS[kind]), code) for _ in range(2)]
    for module in models[1].modules:
        module.double()

    def add(name: str, function: str, inputs: np.ndarray) -> None:
        values = torch.from_numpy(inputs)
        with torch.no_grad():
            single = getattr(models[0], function)(values).numpy()
            exact = getattr(models[1], function)(values.double() if values.is_floating_point() else values).numpy()
        arrays[name] = exact
        arrays[f"{name} error"] = np.abs(single - exact).max() / np.abs(exact).max()

    for rows, columns in SIZES:
        add(f"{rows}x{columns}", "vision", golden_images(kind, rows, columns).transpose(0, 3, 1, 2))
    if KINDS[kind].text:
        add("text", "encode_text", random_ids(12, KINDS[kind]).astype(np.int64))
    return arrays


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for kind in KINDS:
        np.savez_compressed(golden_path(kind), **make(kind, Path(sys.argv[1])))
        print(golden_path(kind))
