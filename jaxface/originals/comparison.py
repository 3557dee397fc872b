"""The same weights and images through this project and through a PyTorch original: how far apart, and how fast."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from jaxface.errors import UserError
from jaxface.models.clip import Clip
from jaxface.models.encoder import Encoder
from jaxface.originals.reference import Original, captured
from jaxface.plots import COLOURS, FAINT, new_figure, styled


@dataclass(frozen=True)
class Difference:
    """What one stage's results are apart.

    Attributes:
      stage: its name.
      error: largest absolute difference over the original's largest absolute value.
      cosine: of the two results as vectors.
    """

    stage: str
    error: float
    cosine: float


@dataclass(frozen=True)
class Speed:
    """Median seconds of one pass over that many images."""

    images: int
    ours: float
    original: float


def compare(model: Encoder | Clip, original: Original, images: np.ndarray, ids: np.ndarray | None = None) -> list[Difference]:
    """Every stage's difference: what enters the first block, each block, tokens, features; of both towers where there are two.

    Args:
      model: an encoder, or both towers.
      original: with the same tensors, in float32.
      images: [B, H, W, 3] in -1..1, float32.
      ids: token ids [T, L] for the text tower, or None to leave it out.

    Raises UserError for an image size that the original treats in another way than the Perception Encoder's authors.
    """
    encoder = model.visual if isinstance(model, Clip) else model
    native = encoder.config.image_size
    if not original.any_size and images.shape[1:3] != (native, native):
        raise UserError(
            f"images of {images.shape[1]} x {images.shape[2]}: timm and open_clip rescale its rotary positions at other sizes than its "
            f"{native} x {native}; compare with Meta's code (--against meta --meta-code DIR)"
        )
    ours, theirs = _vision(encoder, images), _original_vision(original, images)
    if isinstance(model, Clip) and original.encode_text is not None and ids is not None:
        ours |= _text(model, ids)
        theirs |= _original_text(original, ids)
        scale = float(jnp.exp(model.logit_scale[...].astype(jnp.float32)))
        for results in (ours, theirs):
            results["logits"] = scale * _unit(results["features"]) @ _unit(results["text features"]).T
    return [_difference(stage, ours[stage], theirs[stage]) for stage in theirs]


def measure(model: Encoder | Clip, original: Original, images: np.ndarray, repeats: int = 5) -> Speed:
    """Medians over passes of the vision tower, ours and the original's in turn, each warmed up once."""
    import torch

    encoder = model.visual if isinstance(model, Clip) else model
    run = jax.jit(lambda encoder, images: encoder(images))
    here, there = jnp.asarray(images, encoder.dtype), _torch_images(images)

    def theirs() -> None:
        with torch.inference_mode():
            original.vision(there)

    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for seconds, function in zip(times, (lambda: jax.block_until_ready(run(encoder, here)), theirs), strict=True):
            start = time.perf_counter()
            function()
            if turn:
                seconds.append(time.perf_counter() - start)
    return Speed(len(images), statistics.median(times[0]), statistics.median(times[1]))


@jax.jit
def _run_vision(encoder: Encoder, images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    tokens = encoder.tokens(images)
    return encoder.hidden_states(images), tokens, encoder.pooled(tokens)


@jax.jit
def _run_text(clip: Clip, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    return clip.text.hidden_states(ids), clip.encode_text(ids)


def _vision(encoder: Encoder, images: np.ndarray) -> dict[str, np.ndarray]:
    states, tokens, features = _run_vision(encoder, jnp.asarray(images))
    return _named("", states) | {"tokens": np.asarray(tokens), "features": np.asarray(features)}


def _text(clip: Clip, ids: np.ndarray) -> dict[str, np.ndarray]:
    states, features = _run_text(clip, jnp.asarray(ids))
    return _named("text ", states) | {"text features": np.asarray(features)}


def _named(prefix: str, states: Any) -> dict[str, np.ndarray]:
    return {f"{prefix}embedding" if i == 0 else f"{prefix}block {i}": np.asarray(state) for i, state in enumerate(states)}


def _torch_images(images: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _original_vision(original: Original, images: np.ndarray) -> dict[str, np.ndarray]:
    import torch

    values = _torch_images(images)
    with torch.inference_mode(), captured([original.start, *original.blocks]) as states:
        features = original.vision(values)
    with torch.inference_mode():
        tokens = original.tokens(values)
    return _named("", [state.numpy() for state in states]) | {"tokens": tokens.numpy(), "features": features.numpy()}


def _original_text(original: Original, ids: np.ndarray) -> dict[str, np.ndarray]:
    import torch

    with torch.inference_mode(), captured(original.text_blocks) as states:
        assert original.encode_text is not None
        features = original.encode_text(torch.from_numpy(ids).long())
    blocks = {f"text block {i}": state.numpy() for i, state in enumerate(states, 1)}
    return blocks | {"text features": features.numpy()}


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _difference(stage: str, ours: np.ndarray, theirs: np.ndarray) -> Difference:
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    if a.shape != b.shape:
        raise UserError(f"{stage}: ours has shape {a.shape}, the original's {b.shape}")
    return Difference(stage, float(np.abs(a - b).max() / np.abs(b).max()), float(np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)))


@styled
def draw(differences: list[Difference], speed: Speed | None, tolerance: float, title: str, names: tuple[str, str]) -> Figure:
    """The error after every stage on a logarithmic axis, and the speeds as bars."""
    figure, axes = new_figure(9.0, 3.2, ncols=2, width_ratios=(4, 1))
    towers = {"vision tower": lambda stage: not stage.startswith(("text", "logits")), "text tower": lambda stage: stage.startswith("text")}
    for colour, (tower, belongs) in zip(COLOURS, towers.items(), strict=False):
        errors = {d.stage.removeprefix("text "): max(d.error, 1e-9) for d in differences if belongs(d.stage)}
        if errors:
            places = np.arange(len(errors)) + ("embedding" not in errors)
            axes[0].plot(places, list(errors.values()), color=colour, marker="o", markersize=3, label=tower)
            axes[0].annotate(
                "features", (places[-1], errors["features"]), textcoords="offset points", xytext=(4, 0), va="center", fontsize=7
            )
    for d in differences:
        if d.stage == "logits":
            axes[0].plot(axes[0].get_xlim()[1] + 1, max(d.error, 1e-9), color=COLOURS[2], marker="D", linestyle="none", label="logits")
    axes[0].axhline(tolerance, color=FAINT, linestyle="--", linewidth=1, label="tolerance")
    axes[0].set(yscale="log", xlabel="block (then the last norm and the pool)", ylabel="largest error / largest value", title=title)
    axes[0].legend(loc="center right")
    if speed is not None:
        bars = axes[1].bar(names, (speed.ours, speed.original), color=COLOURS[:2])
        axes[1].bar_label(bars, fmt="%.2f")
        axes[1].set(title=f"s for {speed.images} images")
    else:
        axes[1].set_axis_off()
    return figure
