"""LP against multi-task DoRA on another style of drawing than the encoder has seen.

python -m jaxface.train --config configs/drawn_methods.py
"""

from dataclasses import replace
from pathlib import Path

from jaxface.adapters.options import AdapterOptions
from jaxface.data.synthetic import DrawnSet
from jaxface.runs.config import DataOptions, EncoderOptions, MethodOptions, OptimizerOptions, load_config

base = load_config(Path(__file__).with_name("drawn_base.py"))

config = replace(
    base,
    name="drawn/methods",
    encoder=EncoderOptions(),
    method=MethodOptions("dora", AdapterOptions(rank=16)),
    data=DataOptions(drawn=DrawnSet("charcoal", count=3000, test_count=500, seed=3), sampling="shuffle", augment=False),
    optimizer=OptimizerOptions(backbone=1e-3, pool=1e-3, head=1e-3, warmup_steps=20, clip_norm=1.0),
    batch_size=32,
    epochs=4,
    seeds=(0, 1, 2),
    grid=("method.name=lp,dora",),
    report=True,
    after=base,
)
