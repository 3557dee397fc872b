"""python -m jaxface.export RUN --to FORMAT: a run's model for use without this project, checked before it is called done."""

from __future__ import annotations

from typing import Annotated

import tyro

from jaxface.cli import parse
from jaxface.errors import run_command
from jaxface.ranges import Name, Where, ranged


@ranged()
class Options:
    """Writes a run's best model in a format that others read, with a manifest, and checks that it gives the same logits.

    Attributes:
      run: a run folder.
      to: stablehlo (jax.export, any batch size, CPU and CUDA), onnx, safetensors (the merged encoder in Meta's and timm's layout),
        peft (an adapter folder), or run (a run folder with its base weights inside, which opens anywhere).
      out: the folder to write; RUN/export/FORMAT if not given.
      weights: where the run's base weights are, if not where they were; known by their hash.
    """

    run: Annotated[Where, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    to: Name
    out: Where | None = None
    weights: tuple[Where, ...] = ()


def main() -> None:
    """Exports and says what was written."""
    options = parse(Options, prog="python -m jaxface.export")
    from jaxface.exports import export_run, get_exporter  # slow to import: not for --help
    from jaxface.originals.reference import timm_vision

    get_exporter(options.to)
    folder = options.out or options.run / "export" / options.to
    manifest = export_run(options.run, options.to, folder, options.weights, timm_vision)
    check = manifest["check"]
    print(f"logits of {check['images']} images agree to {check['largest_relative_difference']:.1e} of the largest")
    print(f"checked by {check['checked_by']}")
    for name in manifest["files"]:
        print(f"wrote {folder / name}")


if __name__ == "__main__":
    run_command(main)
