"""UW where most of emotion's labels are wrong and classes are unequally frequent: which weight does each task learn?

python -m jaxface.train --config configs/drawn_noise.py
"""

from dataclasses import replace
from pathlib import Path

from jaxface.adapters.options import AdapterOptions
from jaxface.data.synthetic import DrawnSet
from jaxface.runs.config import DataOptions, EncoderOptions, MethodOptions, OptimizerOptions, load_config

base = load_config(Path(__file__).with_name("drawn_base.py"))

config = replace(
    base,
    name="drawn/noise",
    encoder=EncoderOptions(),
    method=MethodOptions("dora", AdapterOptions(rank=16)),
    data=DataOptions(
        drawn=DrawnSet("paint", count=3000, test_count=500, seed=1, skew=20.0, noisy="emotion", noise=0.8),
        sampling="balanced",
        augment=False,
    ),
    optimizer=OptimizerOptions(backbone=2e-3, pool=2e-3, head=2e-3, warmup_steps=20, clip_norm=1.0),
    batch_size=32,
    epochs=5,
    seeds=(0, 1, 2),
    report=True,
    after=base,
)
