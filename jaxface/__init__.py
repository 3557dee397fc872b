"""The Perception Encoder family in JAX, and parameter-efficient fine-tuning of it.

encoder = jaxface.load_encoder("PE-Core-L14-336.pt")
features = encoder(images)  # [B, H, W, 3] in -1..1 -> [B, output]
"""

from __future__ import annotations

import importlib
from typing import Any

EXPORTS = {
    "adapt": "jaxface.adapters.methods",
    "merge": "jaxface.adapters.methods",
    "Predictor": "jaxface.prediction.predictor",
    "load_peft": "jaxface.adapters.peft_format",
    "save_peft": "jaxface.adapters.peft_format",
    "stack_adapters": "jaxface.adapters.mixed_batch",
    "load_run": "jaxface.runs.model",
    "load_encoder": "jaxface.runs.model",
    "load_clip": "jaxface.weights",
    "save_weights": "jaxface.weights",
    "tokenize": "jaxface.models.tokenizer",
}
"""Where each public name is defined; imported when first asked for, so that `import jaxface` costs nothing."""

MODULES = ("kernels",)
"""The packages that are public as they are (`jaxface.kernels.check`), imported in the same way."""


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in EXPORTS:
        raise AttributeError(f"module 'jaxface' has no attribute {name!r}")
    return getattr(importlib.import_module(EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *EXPORTS, *MODULES])
