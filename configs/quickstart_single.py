"""The embedded example's DoRA for one task at a time, to compare with its one DoRA for all (see `python -m jaxface.bench tradeoff`).

python -m jaxface.train --config configs/quickstart_single.py
"""

from dataclasses import replace
from pathlib import Path

from jaxface.runs.config import load_config

config = replace(
    load_config(Path(__file__).with_name("quickstart.py")),
    name="quickstart/single",
    grid=("tasks=age,gender,emotion",),
    before=False,
    pixels=False,
    report=False,
)
