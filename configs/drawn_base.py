"""A small PE trained on drawn faces from nothing: what the experiments on drawn faces start from.

python -m jaxface.train --config configs/drawn_base.py
"""

from jaxface.data.synthetic import DrawnSet
from jaxface.runs.config import RANDOM, Config, DataOptions, EncoderOptions, HeadOptions, MethodOptions, OptimizerOptions

config = Config(
    name="drawn/base",
    encoder=EncoderOptions(weights=RANDOM, variant="PE-Mini-10-60"),
    method=MethodOptions("full"),
    head=HeadOptions(deep=False, dropout=0.0),
    data=DataOptions(drawn=DrawnSet("paint", count=6000, test_count=500), sampling="shuffle", augment=False),
    optimizer=OptimizerOptions(backbone=1.5e-3, pool=1.5e-3, head=1.5e-3, warmup_steps=40, cosine=True, clip_norm=1.0),
    batch_size=64,
    epochs=4,
)
