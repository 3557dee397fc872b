"""One batch of images through each engine of a run, and through what others have: each in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxface.benchmarks._step_cases import Shape
from jaxface.data.synthetic import DrawnSet
from jaxface.exports import export_run
from jaxface.files import write_json
from jaxface.launchers import cpu_count
from jaxface.models.variants import get_variant
from jaxface.prediction.engines import ENGINES, Place
from jaxface.runs.best import model_digest, save_best
from jaxface.runs.config import RANDOM, Config, DataOptions, EncoderOptions, MethodOptions
from jaxface.runs.model import load_base, make_parts
from jaxface.runs.saved_config import to_dict

REFERENCES = ("torch fp32", "torch bf16", "torch compiled", "onnxruntime bare fp32")
"""timm's encoder in PyTorch, and ONNX Runtime as it is, on our file."""


def write_random_run(folder: Path, variant: str) -> None:
    """A run folder whose model was never trained, with drawn faces for its exports' scales."""
    side = get_variant(variant).image_size
    config = Config(
        name=folder.name,
        out=str(folder.parent),
        encoder=EncoderOptions(weights=RANDOM, variant=variant),
        method=MethodOptions("lp"),
        data=DataOptions(drawn=DrawnSet("paint", count=200, test_count=10, size=min(side, 112))),
    )
    base = load_base(config)
    parts = make_parts(config, base)
    save_best(folder, {**parts.trained, **parts.statistics}, {"base": RANDOM, "base_sha256": base.fingerprint})
    write_json(folder / "config.json", to_dict(config))


def export_both(run: Path) -> None:
    """Writes the run's files for the engines."""
    for name in ("onnx", "onnx-int8"):
        export_run(run, name, run / "export" / name)


def words(engine: str) -> str:
    """An engine's name with its precision: "jax fp32"."""
    name, _, precision = engine.partition("-")
    return f"{name} {precision or 'fp32'}"


def engine_names() -> list[str]:
    """Of all engines as a row has them."""
    return [words(engine) for engine in ENGINES]


def images_of(shape: Shape) -> np.ndarray:
    """uint8 [B, S, S, 3]"""
    side = get_variant(shape.variant).image_size
    return np.random.default_rng(0).integers(0, 256, (shape.batch_size, side, side, 3), np.uint8)


def engine_case(case: str, shape: Shape) -> Callable[[], Any]:
    """A function that computes a batch by an engine. Raises UserError for one that is not there.

    Args:
      case: the engine's words, and behind a line feed the run folder.
    """
    name, _, folder = case.partition("\n")
    if name.startswith("torch"):
        return torch_case(name, shape)
    run, images = Path(folder), images_of(shape)
    if name.startswith("onnxruntime bare"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = shape.threads
        bare = onnxruntime.InferenceSession(str(run / "export" / "onnx" / "model.onnx"), options, providers=["CPUExecutionProvider"])
        return lambda: bare.run(None, {"images": images})
    engine = next(engine for key, engine in ENGINES.items() if words(key) == name)
    model = engine.open(Place(run, model_digest(run)))
    rows = -(-len(images) // model.multiple) * model.multiple
    images = np.resize(images, (rows, *images.shape[1:]))
    return lambda: {task: np.asarray(logits) for task, logits in model(images).items()}


def torch_case(name: str, shape: Shape) -> Callable[[], Any]:
    """timm's encoder in float32, under bfloat16's autocast, or compiled."""
    from jaxface.originals.reference import import_torch, timm_vision

    (torch,) = import_torch()
    torch.set_num_threads(shape.threads)
    model = timm_vision(get_variant(shape.variant)).eval()
    images = (torch.from_numpy(images_of(shape)).permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()
    forward = torch.compile(model) if name.endswith("compiled") else model

    def run() -> Any:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=name.endswith("bf16")):
            return forward(images)

    return run


def shape_of(variant: str, batch_size: int) -> Shape:
    """What a case is measured at."""
    return Shape(variant, batch_size, 0, int(os.environ.get("OMP_NUM_THREADS") or cpu_count()))
