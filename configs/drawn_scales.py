"""DoRA, MTLoRA, TS-DoRA and multi-scale MTLoRA, three seeds each, on another style of drawing than the encoder has seen.

python -m jaxface.train --config configs/drawn_scales.py
python -m jaxface.report runs/drawn_scales
"""

from dataclasses import replace
from pathlib import Path

from jaxface.adapters.options import AdapterOptions
from jaxface.runs.config import MethodOptions, load_config

base = load_config(Path(__file__).with_name("drawn_methods.py"))

METHODS = {
    "dora": MethodOptions("dora", AdapterOptions(rank=16)),
    "mtlora": MethodOptions("mtlora", AdapterOptions(rank=16)),
    "ts_dora": MethodOptions("mtlora", AdapterOptions(rank=16, task_dora=True)),
    "attention": MethodOptions("mtlora", AdapterOptions(rank=16, fusion="attention")),
    "mlp": MethodOptions("mtlora", AdapterOptions(rank=16, fusion="mlp")),
}

shared = replace(base, data=replace(base.data, drawn=replace(base.data.drawn, count=1000)), epochs=3, grid=(), report=False)

configs = [replace(shared, name=f"drawn_scales/{name}", method=method) for name, method in METHODS.items()]
