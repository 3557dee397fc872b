"""The Perception Encoder family in JAX, and parameter-efficient fine-tuning of it.

encoder = jaxface.load_encoder("PE-Core-L14-336.pt")
features = encoder(images)  # [B, H, W, 3] in -1..1 -> [B, output]
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxface import kernels
    from jaxface.adapters.adapt import adapt, merge
    from jaxface.adapters.mixed_batch import stack_adapters
    from jaxface.adapters.peft_format import load_peft, save_peft
    from jaxface.models.tokenizer import tokenize
    from jaxface.prediction.adapter_server import AdapterServer
    from jaxface.prediction.predictor import Predictor
    from jaxface.runs.model import load_encoder, load_run
    from jaxface.weights import load_clip, save_weights

__version__ = "0.1.0"

__all__ = [
    "AdapterServer",
    "Predictor",
    "__version__",
    "adapt",
    "kernels",
    "load_clip",
    "load_encoder",
    "load_peft",
    "load_run",
    "merge",
    "save_peft",
    "save_weights",
    "stack_adapters",
    "tokenize",
]

_HOME = {
    "AdapterServer": "jaxface.prediction.adapter_server",
    "Predictor": "jaxface.prediction.predictor",
    "adapt": "jaxface.adapters.adapt",
    "load_clip": "jaxface.weights",
    "load_encoder": "jaxface.runs.model",
    "load_peft": "jaxface.adapters.peft_format",
    "load_run": "jaxface.runs.model",
    "merge": "jaxface.adapters.adapt",
    "save_peft": "jaxface.adapters.peft_format",
    "save_weights": "jaxface.weights",
    "stack_adapters": "jaxface.adapters.mixed_batch",
    "tokenize": "jaxface.models.tokenizer",
}
"""Where each public name is defined; imported when first asked for, so that `import jaxface` costs nothing."""


def __getattr__(name: str) -> Any:
    if name == "kernels":  # public as it is: `jaxface.kernels.check`
        return importlib.import_module("jaxface.kernels")
    if name not in _HOME:
        raise AttributeError(f"module 'jaxface' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
