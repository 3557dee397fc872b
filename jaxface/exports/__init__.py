"""Models for use without this project: each format is a function that writes a folder and checks what it wrote."""

from jaxface.exports import onnx, stablehlo, tensors
from jaxface.exports.exporter import EXPORTERS, export_run, get_exporter

__all__ = ["EXPORTERS", "export_run", "get_exporter", "onnx", "stablehlo", "tensors"]
