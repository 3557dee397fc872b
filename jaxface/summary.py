"""python -m jaxface.summary: parameters and FLOPs of every part and of the adapted model, beside the thesis's figures."""

from __future__ import annotations

import json
import math
import sys
from contextlib import suppress
from dataclasses import replace
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from jaxface.adapters.adapt import merge
from jaxface.cli import given_options
from jaxface.errors import UserError, run_command
from jaxface.models.heads import Classifier
from jaxface.models.tree import shallow_copy
from jaxface.models.variants import TEXT_VARIANTS, VARIANTS
from jaxface.objectives.balancing import get_balancer
from jaxface.runs.command_line import read_command_line
from jaxface.runs.config import RANDOM, Config
from jaxface.runs.costs import (
    PROMPTS,
    THESIS_COUNTS,
    THESIS_GFLOPS,
    THESIS_NOTES,
    encoder_flops,
    encoder_parts,
    model_counts,
    run_costs,
    text_flops,
)
from jaxface.runs.idle_options import idle_options, refuse_or_tell, value_of
from weights_convert.towers import Towers

REFERENCE = "PE-Core-L14-336"
"""The encoder of the thesis."""
COUNTED = ("encoder", "method", "tasks", "tasks_file", "definitions", "balancing")
"""Of a configuration, what says which model it is; and `data.sets`, whose tasks are its own."""


def describe(config: Config) -> dict[str, Any]:
    """Parameters and FLOPs of what the configuration describes; without weights nothing but shapes is made.

    A quantised kernel counts as the kernel that it stands for.
    """
    from jaxface.runs.model import make_parts, shapes_of  # slow to import: not for --help

    config = replace(config, encoder=replace(config.encoder, base="full"))
    parts = make_parts(config) if config.encoder.weights not in (None, RANDOM) else shapes_of(config)
    encoder = parts.build().encoder
    c = encoder.config
    image_size = config.encoder.image_size or c.image_size
    balance = len(get_balancer(config.balancing).parameters(config.tasks)) if len(config.tasks) > 1 else 0
    counts = model_counts(parts, balance)
    merged = jax.eval_shape(_merged, parts.structure.build(parts.frozen, parts.statistics, parts.trained))
    summary: dict[str, Any] = {
        "variant": config.encoder.variant,
        "method": config.method.name,
        "tasks": list(config.tasks),
        "parts": encoder_parts(encoder) if config.method.name == "lp" else encoder_parts(shapes_of(_frozen(config)).build().encoder),
        "model": counts | {"trained, %": 100 * counts["trained"] / counts["total with a log-variance per task"]},
        "flops": dict[str, Any](image_size=image_size, **encoder_flops(c, image_size)),
        "inference": {kind: 1e9 * value for kind, value in run_costs(merged, counts["trained"], image_size)["gflops"].items()},
    }
    variant = config.encoder.variant
    text = TEXT_VARIANTS.get(variant) if variant in TEXT_VARIANTS else None
    if text is not None:
        summary["flops"]["text tower"] = text_flops(text, PROMPTS)
        summary["parts"] |= text_parts(config.encoder.variant)
        summary["parts"]["both towers"] = summary["parts"]["vision tower"] + summary["parts"]["text tower"]
    if config.encoder.variant == REFERENCE:
        summary["thesis"] = dict(THESIS_COUNTS.get((config.method.name, len(config.tasks)), {}))
        if config.method.name in THESIS_NOTES and summary["thesis"]:
            summary["note"] = THESIS_NOTES[config.method.name]
    return summary


def _merged(model: Classifier) -> Classifier:
    """The classifier with what can be merged merged."""
    model = shallow_copy(model)
    model.encoder = merge(model.encoder)
    return model


def text_parts(variant: str) -> dict[str, int]:
    """Parameters of the variant's text tower, its logit scale counted in."""
    shapes = Towers(VARIANTS[variant], TEXT_VARIANTS[variant]).shapes()
    return {"text tower": sum(math.prod(shape) for name, shape in shapes.items() if not name.startswith("visual."))}


def _frozen(config: Config) -> Config:
    return replace(config, method=replace(config.method, name="lp"))


def _require_counted(config: Config, given: set[str]) -> None:
    """Raises UserError for a given option that changes neither the model nor how often it computes."""
    refuse_or_tell(config, {name: why for name, why in idle_options(config).items() if name in given}, given)
    for name in sorted(given):
        with suppress(AttributeError):  # those of other commands
            value = value_of(config, name)
            if name.partition(".")[0] not in COUNTED and name != "data.sets":
                raise UserError(f"{name} {value}: it has no effect, neither parameters nor FLOPs depend on it: leave it out")


def show(summary: dict[str, Any], console: Console) -> None:
    """Prints the summary as tables."""
    title = f"{summary['variant']}, {summary['method']} for {', '.join(summary['tasks'])}"
    table = Table("parameters", "ours", "thesis", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, value in summary["parts"].items():
        table.add_row(name, f"{value:,}", "")
    table.add_section()
    thesis = summary.get("thesis", {})
    for name, value in summary["model"].items():
        table.add_row(name, _figure(value), _figure(thesis[name]) if name in thesis else "")
    console.print(table)
    if "note" in summary:
        console.print(summary["note"])
    flops = summary["flops"]
    size = flops["image_size"]
    table = Table(f"GFLOPs, one {size} x {size} image", "ours", "thesis")
    is_reference = "thesis" in summary and size == 336
    printed = THESIS_GFLOPS if is_reference else {}
    rows = [("linear layers and convolution", flops["linear"], printed.get("vision")), ("attention products", flops["attention"], None)]
    rows += [("together", flops["linear"] + flops["attention"], None)]
    if "text tower" in flops:
        both = flops["linear"] + flops["text tower"]["linear"]
        rows += [(f"with the text tower for {PROMPTS} prompts, linear", both, printed.get("zero-shot"))]
    whole = summary["inference"]
    own = printed.get("mtlora" if summary["method"] == "mtlora" else "vision")
    rows += [("this model at inference, linear", whole["linear"], own), ("with its attention products", whole["all products"], None)]
    for name, value, theirs in rows:
        table.add_row(name, f"{value / 1e9:.2f}", "" if theirs is None else f"{theirs:.2f}")
    console.print(table)
    if is_reference:
        console.print(
            "The thesis's counter leaves out the attention's score and value products, and finds 0.16 % more than the linear layers and "
            "the convolution; it does not say what."
        )


def _figure(value: float) -> str:
    return f"{value:.2f}" if isinstance(value, float) else f"{value:,}"


def main() -> None:
    """Prints what a configuration costs."""
    arguments = [word for word in sys.argv[1:] if word != "--json"]
    config = read_command_line(arguments, prog="python -m jaxface.summary")
    _require_counted(config, given_options(arguments))
    summary = describe(config)
    if "--json" in sys.argv:
        print(json.dumps(summary))
    else:
        show(summary, Console())


if __name__ == "__main__":
    run_command(main)
