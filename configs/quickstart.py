"""The embedded example: a small PE learns painted faces from nothing, then DoRA adapts it to charcoal drawings.

python -m jaxface.train
"""

from dataclasses import replace

from jaxface.adapters.options import AdapterOptions
from jaxface.data.synthetic import DrawnSet
from jaxface.runs.config import RANDOM, Config, DataOptions, EncoderOptions, HeadOptions, MethodOptions, OptimizerOptions

paint = Config(
    name="quickstart/paint",
    encoder=EncoderOptions(weights=RANDOM, variant="PE-Mini-10-60"),
    method=MethodOptions("full"),
    head=HeadOptions(deep=False, dropout=0.0),
    data=DataOptions(drawn=DrawnSet("paint", count=12000, test_count=1000), sampling="shuffle", augment=False),
    optimizer=OptimizerOptions(backbone=1.5e-3, pool=1.5e-3, head=1.5e-3, warmup_steps=40, cosine=True, clip_norm=1.0),
    batch_size=64,
    epochs=3,
)

config = replace(
    paint,
    name="quickstart/charcoal",
    encoder=EncoderOptions(),
    method=MethodOptions("dora", AdapterOptions(rank=32)),
    data=DataOptions(drawn=DrawnSet("charcoal", count=17000, test_count=1000, seed=1), sampling="shuffle", augment=False),
    optimizer=OptimizerOptions(backbone=1.2e-3, pool=1.2e-3, head=1.2e-3, plus_ratio=6, warmup_steps=40, cosine=True, clip_norm=1.0),
    batch_size=32,
    epochs=3,
    before=True,
    pixels=True,
    report=True,
    after=paint,
)
