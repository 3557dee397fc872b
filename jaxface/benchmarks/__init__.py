"""What `python -m jaxface.bench NAME` can measure: each file here is one benchmark with a function `main(arguments)`."""

from __future__ import annotations

import pkgutil


def names() -> list[str]:
    """The benchmarks, in the order of their names."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
