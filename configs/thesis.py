"""All models of the thesis's chapter 4, one after another: each run is skipped where it stands, and goes on where it was stopped.

python -m jaxface.train --config configs/thesis.py --encoder.weights PE-Core-L14-336.pt --data.sets data/lagenda data/fairface ...
"""

from dataclasses import replace
from pathlib import Path

from jaxface.runs.config import load_config

SINGLE_TASK = ("single_lp", "single_ap", "single_ft4", "single_dora")  # tables 4.4 to 4.6 and 4.11; LP's heads again in 4.8 to 4.12
BALANCING = ("ft4_ema", "ft4", "mtlora_ema", "mtlora")  # table 4.7
MULTI_TASK = ("ap", "dora")  # tables 4.8 to 4.10 and 4.12 to 4.15, with ft4 and mtlora
ABLATION = ("lora",)  # table 4.16

configs = [
    replace(config, name=f"thesis/{config.name}")
    for name in (*SINGLE_TASK, *BALANCING, *MULTI_TASK, *ABLATION)
    for config in [load_config(Path(__file__).with_name(f"{name}.py"))]
]
