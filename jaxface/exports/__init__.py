"""Models for use without this project: each format is a function that writes a folder and checks what it wrote."""

from jaxface.exports import consumers, onnx, onnx_int8, run_folder, stablehlo, tensors
from jaxface.exports.exporter import EXPORTERS, export_run, get_exporter, load_exported, read_manifest

__all__ = [
    "EXPORTERS",
    "consumers",
    "export_run",
    "get_exporter",
    "load_exported",
    "onnx",
    "onnx_int8",
    "read_manifest",
    "run_folder",
    "stablehlo",
    "tensors",
]
