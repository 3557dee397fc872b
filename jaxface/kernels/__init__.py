"""Kernels: what a step spends its time in. Importing the package makes every attention kernel known."""

from jaxface.kernels import attention, cudnn_attention, pallas_attention
from jaxface.kernels.conformance import check

__all__ = ["attention", "check", "cudnn_attention", "pallas_attention"]
