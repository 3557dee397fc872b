"""Which platform a program that is traced now will run on: kernels that suit one of them are chosen by it.

Importing this makes float32 products float32's where JAX has an accelerator.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any

import jax

_TOLD: ContextVar[str | None] = ContextVar("platform", default=None)


def multiply_in_float32() -> None:
    """Left to itself JAX rounds the operands of a float32 product to TF32 (10 bits) on NVIDIA's GPUs and to bfloat16 (7 bits) on TPUs.

    A choice that the user has made stays; a processor's products are exact as they are.
    """
    config: Any = jax.config  # its flags have no types
    elsewhere = config.jax_platforms != "cpu" and (find_spec("jax_plugins") or find_spec("libtpu"))
    if elsewhere and config.jax_default_matmul_precision is None:
        config.update("jax_default_matmul_precision", "highest")


multiply_in_float32()


@contextmanager
def tracing_for(platform: str) -> Iterator[None]:
    """What is traced within is for that platform ("cpu", "gpu", "tpu"), whichever this machine has."""
    token = _TOLD.set(platform)
    try:
        yield
    finally:
        _TOLD.reset(token)


def platform() -> str:
    """The platform that was told, else that of JAX's default device."""
    if told := _TOLD.get():
        return told
    config: Any = jax.config  # its flags have no types
    device = config.jax_default_device
    return jax.default_backend() if device is None else getattr(device, "platform", device)
