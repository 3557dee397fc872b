"""python -m jaxface.bench gpu FOLDER: what is to be run once on a machine with a GPU, in one command of eight minutes, into one folder.

Each part is a command of its own with a time limit; its output stands in a file of its name. What needs a GPU is left out where there is
none. `summary.md` says what came of each part, and puts the predictions beside what was measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxface.benchmarks._gpu_devices import DEVICES
from jaxface.cli import parse
from jaxface.files import aside, write_json
from jaxface.models.variants import VARIANTS
from jaxface.ranges import Count, Known, Place, Range, ranged

ASK = """
import json, platform, jax
from importlib.metadata import distributions
names = ("jax", "jaxlib", "flax", "optax", "torch", "timm", "peft", "triton", "nvidia")
found = sorted((d.metadata["Name"], d.version) for d in distributions() if (d.metadata["Name"] or "").lower().split("-")[0] in names)
devices = [f"{device.platform} {device.device_kind}" for device in jax.devices()]
print(json.dumps({"backend": jax.default_backend(), "devices": devices, "python": platform.python_version(), **dict(found)}))
"""
CHECK = """
import jaxface.kernels
from jaxface.kernels.operations import OPERATIONS
reports = [jaxface.kernels.check(name, operation=kind) for kind, known in OPERATIONS.items() for name in known]
raise SystemExit(not all(report.ok for report in reports))
"""


@ranged()
class Options:
    """Runs the parts, the most telling first, until the time is over.

    Attributes:
      folder: where all of it is written; it may not exist yet.
      minutes: for all parts together.
      variant: the encoder.
      batch_size: images of a step; ours and that of timm and PEFT, which takes most, share the card.
    """

    folder: Annotated[Path, Place(), tyro.conf.Positional] = Path("gpu-report")
    minutes: Annotated[float, Range(0.1, 600)] = 8.0
    variant: Annotated[str, Known(VARIANTS)] = "PE-Core-L14-336"
    batch_size: Count = 32


@dataclass(frozen=True)
class Part:
    """One command.

    Attributes:
      name: of its file.
      words: behind the interpreter.
      device: whether it needs a GPU.
      seconds: that it may take.
    """

    name: str
    words: Sequence[str]
    device: bool = True
    seconds: float = 120


def parts(options: Options, card: str = "h100") -> tuple[Part, ...]:
    """All parts, the most telling first; predictions are for that card of `DEVICES`."""

    def bench(name: str, *words: str) -> tuple[str, ...]:
        return ("-m", "jaxface.bench", name, *words)

    sized = ("--variant", options.variant, "--batch-size", str(options.batch_size))
    cases, few = ("--cases", "dora", "lora", "full"), ("--rounds", "3", "--json")
    against, whole = ("--against", "torch"), f"{options.variant}:{options.batch_size}"
    compiler = find_spec("jax_cuda12_plugin") or find_spec("jax_cuda13_plugin")  # needs no card
    run = str(options.folder.resolve() / "runs")
    return (
        Part("operations", ("-c", CHECK), device=False),
        Part("kernels", bench("attention", "xla", "cudnn", "--rounds", "0")),
        Part("steps", bench("steps", *sized, *against, *few, *cases), seconds=300),
        Part("training", ("-m", "jaxface.train", "--out", run), seconds=180),
        Part("attention", bench("attention", "cudnn", "pallas", *against, "--variants", whole, *few)),
        Part("predicted", bench("compile", *sized, "--device", card, "--json", *cases), device=not compiler, seconds=240),
        Part("steps-beside-compiled-torch", bench("steps", *sized, *against, *few, "--compile", "--cases", "dora"), seconds=180),
        Part("kernels-pallas", bench("attention", "pallas", "--rounds", "0")),
        Part("memory", bench("memory", *sized, "--rounds", "0", "--json", "--remat", "products", "--base", "full", "int8")),
        Part("prediction", bench("predict", "--faces", "whole", "--batches", "2", "--rounds", "1", "--json"), device=False),
        Part("input", bench("input", "--seconds", "1", "--rounds", "1", "--json"), device=False),
    )


def run(part: Part, folder: Path, seconds: float) -> str:
    """Runs a part for so long at most, its output in a file. Returns what came of it: "done", or why not."""
    environment = {"JAX_COMPILATION_CACHE_DIR": str(folder.resolve() / "programs")} | os.environ
    path = folder / f"{part.name}.txt"
    with path.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *part.words], stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            return f"ended after {seconds:.0f} s"
    if not status:
        return "done"
    last = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return f"failed: {last[-1][:200] if last else f'exit status {status}'}"


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a part's output that are JSON objects."""
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


def beside(folder: Path) -> list[dict[str, Any]]:
    """Each case's predicted seconds and bytes, and the seconds that it took."""
    took = {row["case"]: row["seconds"] for row in json_lines(folder / "steps.txt")}
    return [
        {"case": row["case"], "predicted_seconds": row["estimated_seconds"], "seconds": took[row["case"]]}
        for row in json_lines(folder / "predicted.txt")
        if row["case"] in took
    ]


def summary(machine: dict[str, Any], came: dict[str, str], pairs: Iterable[dict[str, Any]]) -> str:
    """All of it as a page."""
    lines = ["# One run on a machine with a GPU" if machine.get("backend") == "gpu" else "# No GPU here: its parts were left out", ""]
    lines += [f"- {name}: {', '.join(value) if isinstance(value, list) else value}" for name, value in machine.items()]
    lines += ["", "| part | what came of it |", "| --- | --- |", *(f"| [{name}]({name}.txt) | {what} |" for name, what in came.items())]
    rows = []
    for pair in pairs:
        predicted, took = pair["predicted_seconds"], pair["seconds"]
        rows.append(f"| {pair['case']} | {predicted:.3f} | {took:.3f} | {took / predicted:.2f} |")
    if rows:
        lines += ["", "| step | predicted, s | measured, s | measured / predicted |", "| --- | --- | --- | --- |", *rows]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """The command."""
    options = parse(Options, args=arguments, prog="python -m jaxface.bench gpu")
    folder, start = options.folder, time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    came = {"machine": run(Part("machine", ("-c", ASK)), folder, 60 * options.minutes)}
    machine = (json_lines(folder / "machine.txt") or [{}])[-1]
    card = next((name for name in DEVICES if name in " ".join(machine.get("devices", ())).lower()), "h100")
    for part in parts(options, card):
        left = 60 * options.minutes - (time.monotonic() - start)
        if part.device and machine.get("backend") != "gpu":
            came[part.name] = "left out: no GPU here"
        elif left < 1:
            came[part.name] = "left out: no time left"
        else:
            print(f"{part.name} ...", file=sys.stderr, flush=True)
            came[part.name] = run(part, folder, min(part.seconds, left))
        print(f"{part.name}: {came[part.name]}", file=sys.stderr, flush=True)
    pairs = beside(folder)
    write_json(folder / "summary.json", {"machine": machine, "parts": came, "predictions": pairs})
    with aside(folder / "summary.md") as path:
        path.write_text(summary(machine, came, pairs))
    print(folder / "summary.md")
