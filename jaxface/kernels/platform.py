"""Which platform a program that is traced now will run on: kernels that suit one of them are chosen by it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax

_TOLD: ContextVar[str | None] = ContextVar("platform", default=None)


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
