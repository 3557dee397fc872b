"""Derivatives of any order and in both directions, where the kernels' own backward passes allow gradients alone.

with jaxface.kernels.plain.derivatives():
    value, tangent = jax.jvp(encoder, (images,), (direction,))
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_PLAIN: ContextVar[bool] = ContextVar("plain", default=False)


@contextmanager
def derivatives() -> Iterator[None]:
    """What is traced within has JAX's own derivatives: `jvp`, `jacfwd`, `hessian` and gradients of gradients work, and take more memory.

    Enter it outside of `jax.jit`, whose compiled programs do not know of it. Attention is the kernel "xla" there, whatever is chosen.
    """
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)


def is_plain() -> bool:
    """Whether kernels are to leave their derivatives to JAX."""
    return _PLAIN.get()
