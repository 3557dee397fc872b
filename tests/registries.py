"""What a test registers, forgotten after it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from jaxface.registry import Registry


@contextmanager
def all_as_before() -> Iterator[None]:
    """Every registry has at the end what it has now."""
    with ExitStack() as stack:
        for registry in [thing for thing in gc.get_objects() if type(thing) is Registry]:
            stack.enter_context(registry.temporarily())
        yield
