"""Multi-scale MTLoRA: task-specific blocks at the ends of the four quarters, their features fused by attention (thesis, section 5.2).

python -m jaxface.train --config configs/mtlora_multi_scale.py --encoder.weights PE-Core-L14-336.pt --data.sets data/fairface ...
"""

from jaxface.adapters.options import AdapterOptions
from jaxface.runs.config import Config, MethodOptions

config = Config(name="mtlora_multi_scale", method=MethodOptions("mtlora", AdapterOptions(fusion="attention")))
