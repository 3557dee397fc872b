"""python -m jaxface.export RUN --to FORMAT: a run's model for use without this project, checked before it is called done."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro

from jaxface.cli import parse
from jaxface.errors import UserError, run_command
from jaxface.ranges import Items, Name, Where, ranged, refuse_idle


@ranged()
class Options:
    """Writes a run's best model in a format that others read, with a manifest, and checks that it gives the same logits.

    Attributes:
      run: a run folder.
      to: stablehlo (jax.export, any batch size, CPU and CUDA), onnx, safetensors (the merged encoder in Meta's and timm's layout),
        peft (an adapter folder), or run (a run folder with its base weights inside, which opens anywhere).
      precision: fp32 if not given, or int8, for onnx: products of eight bits, whose scales are fitted on the run's validation records; the
        manifest says how far the answers agree with float32's.
      data: folders written by `jaxface.prepare` for int8's records, if not the run's own.
      out: the folder to write; RUN/export/FORMAT if not given, and RUN/export/onnx-int8.
      weights: where the run's base weights are, if not where they were; known by their hash.
    """

    run: Annotated[Where, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    to: Name
    precision: Literal["fp32", "int8"] | None = None
    data: Annotated[tuple[Where, ...], Items(once=True)] = ()
    out: Where | None = None
    weights: tuple[Where, ...] = ()


def main() -> None:
    """Exports and says what was written."""
    options = parse(Options, prog="python -m jaxface.export")
    from jaxface.exports import EXPORTERS, export_run, get_exporter  # slow to import: not for --help
    from jaxface.originals.reference import timm_vision

    get_exporter(options.to)
    refuse_idle(options, f"{options.to}-int8" in EXPORTERS, f"--to {options.to} is written in one precision alone", "precision")
    name = options.to if options.precision != "int8" else f"{options.to}-int8"
    if options.data and options.precision != "int8":
        raise UserError("--data is for --precision int8: float32 needs no records")
    folder = options.out or options.run / "export" / name
    manifest = export_run(options.run, name, folder, options.weights, timm_vision, options.data)
    check = manifest["check"]
    print(f"logits of {check['images']} images agree to {check['largest_relative_difference']:.1e} of the largest")
    print(f"checked by {check['checked_by']}")
    for task, said in manifest.get("agreement", {}).get("tasks", {}).items():
        print(f"{task}: the class of float32 for {said['same_class']:.2%} of {manifest['agreement']['images']} validation images")
    for name in manifest["files"]:
        print(f"wrote {folder / name}")


if __name__ == "__main__":
    run_command(main)
