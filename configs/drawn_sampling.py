"""Plain shuffling against balanced sampling where the first class is fifty times as frequent as the last.

python -m jaxface.train --config configs/drawn_sampling.py
"""

from dataclasses import replace
from pathlib import Path

from jaxface.adapters.options import AdapterOptions
from jaxface.data.synthetic import DrawnSet
from jaxface.runs.config import DataOptions, EncoderOptions, MethodOptions, OptimizerOptions, load_config

base = load_config(Path(__file__).with_name("drawn_base.py"))

config = replace(
    base,
    name="drawn/sampling",
    encoder=EncoderOptions(),
    method=MethodOptions("dora", AdapterOptions(rank=16)),
    data=DataOptions(drawn=DrawnSet("charcoal", count=3000, test_count=500, seed=2, skew=50.0), sampling="balanced", augment=False),
    optimizer=OptimizerOptions(backbone=1e-3, pool=1e-3, head=1e-3, warmup_steps=20, clip_norm=1.0),
    batch_size=32,
    epochs=4,
    seeds=(0, 1, 2),
    grid=("data.sampling=shuffle,balanced",),
    report=True,
    after=base,
)
