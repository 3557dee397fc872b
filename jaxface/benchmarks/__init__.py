"""What `python -m jaxface.bench NAME` can measure: each file named here is one benchmark with a function `main(arguments)`."""

from __future__ import annotations

from jaxface.registry import Registry

BENCHMARKS = Registry(
    "benchmark",
    {
        "adapters": "mixed_adapters",
        "compile": "gpu_program",
        "attention": "attention_kernels",
        "gpu": "gpu_report",
        "input": "input_pipeline",
        "loop": "training_loop",
        "memory": "step_memory",
        "predict": "prediction_speed",
        "profile": "step_profile",
        "roofline": "roofline",
        "scaling": "scaling",
        "serve": "serving",
        "steps": "steps",
        "tradeoff": "tradeoff",
    },
)
"""Each benchmark's file by the name that the command line knows; imported when it is asked for."""
