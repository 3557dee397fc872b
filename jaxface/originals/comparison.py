"""How fast this project and a PyTorch original are with the same weights and images, and the pictures of a comparison."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from jaxface.models.clip import Clip
from jaxface.models.encoder import Encoder
from jaxface.originals.certificate import Certificate
from jaxface.originals.reference import Original
from jaxface.plots import COLOURS, FAINT, WRONG, new_figure, styled
from jaxface.timing import interleaved, medians


@dataclass(frozen=True)
class Speed:
    """Median seconds of one pass over that many images."""

    images: int
    ours: float
    original: float


def measure(model: Encoder | Clip, original: Original, images: np.ndarray, repeats: int = 5) -> Speed:
    """Medians over passes of the vision tower, ours and the original's in turn, each warmed up once."""
    import torch

    encoder = model.visual if isinstance(model, Clip) else model
    run = jax.jit(lambda encoder, images: encoder(images))
    here, there = jnp.asarray(images, encoder.dtype), torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))

    def theirs() -> None:
        with torch.inference_mode():
            original.vision(there)

    seconds = medians(interleaved({"ours": lambda: run(encoder, here), "original": theirs}, repeats))
    return Speed(len(images), **seconds)


@styled
def draw(certificate: Certificate, speed: Speed | None, title: str, names: tuple[str, str]) -> Figure:
    """Both errors of every value along the pass on a logarithmic axis, the budget, and the speeds as bars."""
    figure, axes = new_figure(9.0, 3.2, ncols=2, width_ratios=(4, 1))
    layers = certificate.layers
    shown = {"ours": COLOURS[0], "the original's own": COLOURS[1]}
    for (label, colour), errors in zip(
        shown.items(), ([layer.error for layer in layers], [layer.original_error for layer in layers]), strict=True
    ):
        axes[0].plot(
            range(len(layers)), [min(max(error, 1e-9), 1e3) for error in errors], color=colour, marker=".", markersize=4, label=label
        )
    axes[0].plot(range(len(layers)), [layer.budget for layer in layers], color=FAINT, linestyle="--", linewidth=1, label="budget")
    if certificate.first_departure is not None:
        place = [layer.name for layer in layers].index(certificate.first_departure)
        axes[0].axvline(place, color=WRONG, linewidth=1, label=certificate.first_departure)
    axes[0].set(yscale="log", xlabel="values in the order of the pass", ylabel="error / length", title=title)
    axes[0].legend(loc="best")
    if speed is not None:
        bars = axes[1].bar(names, (speed.ours, speed.original), color=COLOURS[:2])
        axes[1].bar_label(bars, fmt="%.2f")
        axes[1].set(title=f"s for {speed.images} images")
    else:
        axes[1].set_axis_off()
    return figure


@styled
def draw_training(training: Sequence[Mapping[str, Any]]) -> Figure:
    """The losses of training runs, ours as lines and the original's as dots, and how far apart they are on a logarithmic axis."""
    figure, axes = new_figure(9.0, 3.6, ncols=2)
    for colour, run in zip(itertools.cycle(COLOURS), training, strict=False):
        for precision, style in (("float32", "-"), ("float64", "--")):
            ours, theirs = np.asarray(run["courses"][precision]["losses"], np.float64).T
            steps, label = np.arange(1, len(ours) + 1), run["method"] if precision == "float32" else None
            apart = np.abs(ours - theirs) / np.abs(theirs)
            axes[1].plot(steps, np.clip(np.nan_to_num(apart, nan=1e3), 1e-17, 1e3), color=colour, linestyle=style, linewidth=1)
            if precision == "float32":
                axes[0].plot(steps, ours, color=colour, label=label, linewidth=1)
                axes[0].plot(steps[::5], theirs[::5], color=colour, linestyle="", marker=".", markersize=4)
    axes[0].set(xlabel="step", ylabel="loss", title="losses: ours lines, the original's dots")
    axes[1].set(yscale="log", xlabel="step", title="how far apart: float32 lines, float64 dashes")
    axes[0].legend(loc="best", ncols=2)
    return figure
