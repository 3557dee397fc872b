"""python tests/smoke.py: import, adapt, train, go on, export, on whatever Python and JAX run this. Takes a minute; `.ci/run` calls it."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

import jaxface
from jaxface.adapters.options import AdapterOptions
from jaxface.data.synthetic import DrawnSet
from jaxface.exports import export_run, load_exported
from jaxface.models.encoder import random_encoder
from jaxface.models.variants import VARIANTS, EncoderConfig
from jaxface.runs.config import RANDOM, Config, DataOptions, EncoderOptions, MethodOptions
from jaxface.training.loop import Run

SIZE = 12


def main(folder: Path) -> None:
    """Does all of it in a folder; an AssertionError says what does not hold."""
    variant = VARIANTS.add("smoke", EncoderConfig(16, 2, 2, 32, 6, SIZE, output=16, pool_heads=2))
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    encoder = random_encoder(variant, 0)
    merged = jaxface.merge(jaxface.adapt(encoder, "dora", rank=2))
    np.testing.assert_allclose(merged(images / 127.5 - 1), encoder(images / 127.5 - 1), atol=1e-5)

    config = Config(
        name="run",
        out=str(folder),
        encoder=EncoderOptions(weights=RANDOM, variant="smoke"),
        method=MethodOptions("dora", AdapterOptions(rank=2)),
        data=DataOptions(drawn=DrawnSet("paint", count=100, test_count=12, size=16), sampling="shuffle"),
        batch_size=8,
        epochs=1,
    )
    run = Run(config).run()
    steps = json.loads((run / "result.json").read_text())["steps"]
    Run(replace(config, epochs=2)).run()
    result = json.loads((run / "result.json").read_text())
    assert result["steps"] == 2 * steps >= 20, result
    export_run(run, "stablehlo", folder / "exported")
    sample = np.load(folder / "exported/sample.npz")
    for task, logits in load_exported(folder / "exported")(sample["images"]).items():
        np.testing.assert_allclose(logits, sample[f"logits_{task}"], atol=1e-4)
    print(f"smoke: Python {sys.version.split()[0]}, JAX {jax.__version__}: {result['steps']} steps, exported")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
