"""ONNX files: written, and run by ONNX Runtime."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxface.errors import UserError
from jaxface.exports.exporter import LOADERS, Answer
from jaxface.files import aside
from jaxface.launchers import cpu_count
from jaxface.registry import Registry

FILE = "model.onnx"
LARGE = 1_800_000_000
"""Bytes of weights above which they stand in a file of their own: a protocol buffer ends at two gigabytes."""
ABOUT = {"checked_by": "ONNX Runtime", "use": f"onnxruntime.InferenceSession('{FILE}').run(None, {{'images': images}})"}
"""What a manifest says of such a file."""


def required(name: str) -> Any:
    """A package by its name. Raises UserError without the extra that has it."""
    if name == "openvino":  # whose import tells its makers that it is used, from a process forked from this one with all of its threads
        modules: dict[str, Any] = sys.modules
        modules.setdefault("openvino_telemetry", None)  # as if that part were not installed
    try:
        return importlib.import_module(name)
    except ImportError as error:
        extra = name if name == "openvino" else "onnx"
        raise UserError(f"ONNX needs {error.name}: pip install 'jaxface[{extra}]'") from None


def require_onnx() -> None:
    """Raises UserError without the extra `onnx`."""
    required("onnx")
    required("onnxruntime")


def write_onnx(proto: Any, folder: Path) -> None:
    """Writes an ONNX model into a folder."""
    import onnx

    large = sum(len(tensor.raw_data) for tensor in proto.graph.initializer) > LARGE
    with aside(folder / FILE) as temporary:
        onnx.save(proto, temporary, save_as_external_data=large, location=f"{FILE}.data")


def session(model: Path | bytes, threads: int = 0, *, plain: bool = False) -> Any:
    """ONNX Runtime's session of a model on the CPU.

    Args:
      threads: that compute; as many as this process may use if 0.
      plain: every node as it stands, none changed or joined with others.

    Raises UserError without the extra `onnx`.
    """
    onnxruntime = required("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or cpu_count()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others, who decode photos, need the cores
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"])


def answer_of(opened: Any) -> Answer:
    """A session as a function of images."""
    names = [output.name for output in opened.get_outputs()]
    return lambda images: dict(zip(names, opened.run(None, {"images": images}), strict=True))


LIBRARIES: Registry[Callable[[Path], Answer]] = Registry("library for ONNX files")
"""The answers of a file, by what computes them."""


@LIBRARIES.register("onnxruntime")
def by_onnxruntime(file: Path) -> Answer:
    return answer_of(session(file))


@LIBRARIES.register("openvino")
def by_openvino(file: Path) -> Answer:
    """OpenVINO's CPU plugin, in float32 where nothing is rounded. Raises UserError without the extra `openvino`."""
    core = required("openvino").Core()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": cpu_count(), "ENABLE_CPU_PINNING": False}
    model = core.read_model(str(file))
    names = [next(iter(output.names)) for output in model.outputs]
    compiled = core.compile_model(model, "CPU", options)
    return lambda images: dict(zip(names, compiled({"images": images}).values(), strict=True))


@LOADERS.register("onnx")
def open_onnx(folder: Path) -> Answer:
    """The answers of ONNX Runtime. Raises UserError without the extra `onnx`."""
    return by_onnxruntime(folder / FILE)


LOADERS.add("onnx-int8", open_onnx)
