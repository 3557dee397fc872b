"""A run folder with a model, as training leaves it, without training: a tiny encoder whose adapters and heads are random."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from jaxface.adapters.options import AdapterOptions
from jaxface.data.synthetic import DrawnSet
from jaxface.files import write_json
from jaxface.runs.base import base_info
from jaxface.runs.best import save_best
from jaxface.runs.config import Config, DataOptions, EncoderOptions, HeadOptions, MethodOptions
from jaxface.runs.model import load_base, make_parts
from jaxface.runs.saved_config import to_dict
from jaxface.weights import save_weights
from tiny_encoder import tiny_encoder


def write_trained_run(folder: Path, name: str = "dora", options: AdapterOptions | None = None, seed: int = 1, **changes) -> Path:
    """Writes `folder/run` and the base weights beside it; returns the run folder.

    Args:
      name: of the method.
      options: of it; rank 2 if None.
      seed: of what is made up for what would have been trained.
    """
    weights = folder / "base.safetensors"
    save_weights(tiny_encoder(), weights)
    config = Config(
        name="run",
        out=str(folder),
        encoder=EncoderOptions(weights=str(weights)),
        method=MethodOptions(name, options or AdapterOptions(rank=2)),
        head=HeadOptions(dropout=0.0),
        data=DataOptions(drawn=DrawnSet("paint", count=24, test_count=12, size=16)),
        batch_size=8,
    )
    config = dataclasses.replace(config, **changes)
    base = load_base(config)
    parts = make_parts(config, base)
    random = np.random.default_rng(seed)
    changed = {
        name: np.asarray(leaf) + np.float32(0.1) * np.abs(random.normal(size=leaf.shape)).astype(np.float32)
        for name, leaf in {**parts.trained, **parts.statistics}.items()
    }
    trained = {name: changed[name] for name in parts.trained}
    statistics = {name: changed[name] for name in parts.statistics}
    run = folder / "run"
    info = {"step": 3, "epoch": 1, "accuracy": 0.5, **base_info(config, base, run)}
    save_best(run, {**trained, **statistics}, info)
    write_json(run / "config.json", to_dict(config))
    return run
