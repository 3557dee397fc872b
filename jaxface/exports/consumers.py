"""What the libraries that an export is for answer with its files: timm and PEFT, which read them by their own rules."""

from __future__ import annotations

import importlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file

from jaxface.errors import UserError
from jaxface.exports.exporter import CONSUMERS, Answer, BuildTimm, Consumer, Logits, MissingConsumer
from jaxface.exports.tensors import BASE, HEADS
from jaxface.models.encoder import as_trained, normalize_images
from jaxface.runs.model import Trained, load_base
from jaxface.weights import save_weights


def timm_answer(trained: Trained, folder: Path, build: BuildTimm) -> Answer:
    """timm's model at the run's image size, filled strictly from `encoder.timm.safetensors`."""
    return _answer(trained, folder, _filled(trained, folder / "encoder.timm.safetensors", build))


def peft_answer(trained: Trained, folder: Path, build: BuildTimm) -> Answer:
    """PEFT's model from the adapter folder, on timm's with the base weights, at the run's image size."""
    with tempfile.TemporaryDirectory() as temporary:
        path = folder / BASE
        if not path.exists():
            path = Path(temporary) / BASE
            save_weights(load_base(trained.config, trained.base, trained.places).encoder, path, layout="timm")
        model = _filled(trained, path, build)
    try:
        peft = importlib.import_module("peft")  # after timm's builder, which sees to torch's imports
    except ImportError:
        raise MissingConsumer("PEFT is not installed: pip install 'jaxface[reference]'") from None
    return _answer(trained, folder, peft.PeftModel.from_pretrained(model, str(folder)).eval())


def _filled(trained: Trained, path: Path, build: BuildTimm) -> Any:
    config = replace(trained.model.encoder.config, image_size=trained.image_size)
    try:
        model = build(config).eval()
    except UserError as error:
        raise MissingConsumer(str(error)) from None
    torch = importlib.import_module("torch")
    try:
        model.load_state_dict({name: torch.from_numpy(value) for name, value in load_file(path).items()})
    except RuntimeError as error:  # torch's for names and shapes, in several lines
        raise UserError(f"{path}: timm does not take it: {' '.join(str(error).split())[:300]}") from None
    return model


def _answer(trained: Trained, folder: Path, model: Any) -> Answer:
    """A torch model's features through the heads of the file, as the manifest describes them."""
    torch, heads = importlib.import_module("torch"), load_file(folder / HEADS)

    def answer(images: np.ndarray) -> Logits:
        with torch.inference_mode():
            pixels = np.array(as_trained(normalize_images(jax.device_put(images)), trained.model.encoder.config))
            features = model(torch.from_numpy(pixels).permute(0, 3, 1, 2))
            features = torch.from_numpy(np.array(trained.model.reduced(features.numpy())))
            outputs = {task: _head(torch, heads, task, features).numpy() for task in trained.model.heads}
        return {task: np.asarray(trained.model.heads[task].to_logits(jax.device_put(output))) for task, output in outputs.items()}

    return answer


def _head(torch: Any, heads: dict[str, np.ndarray], task: str, x: Any) -> Any:
    """Features [B, D] -> what the last layer says [B, ...]."""
    part = {name.removeprefix(f"{task}."): torch.from_numpy(value) for name, value in heads.items() if name.startswith(f"{task}.")}
    functional = torch.nn.functional
    if "norm.weight" in part:
        norm = (part["norm.running_mean"], part["norm.running_var"], part["norm.weight"], part["norm.bias"])
        x = functional.batch_norm(x, *norm, eps=1e-5)
    if "hidden.weight" in part:
        x = functional.gelu(functional.linear(x, part["hidden.weight"], part["hidden.bias"]))
    return x @ part["out.weight"].T + part["out.bias"]  # a head of ranks has one row and several biases


CONSUMERS.add("safetensors", Consumer("timm; Meta's layout by jaxface", timm_answer))
CONSUMERS.add("peft", Consumer("PEFT on timm's model", peft_answer))
