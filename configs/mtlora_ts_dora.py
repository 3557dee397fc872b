"""MTLoRA whose task-specific updates are DoRA, too (TS-DoRA; thesis, section 5.2).

python -m jaxface.train --config configs/mtlora_ts_dora.py --encoder.weights PE-Core-L14-336.pt --data.sets data/fairface ...
"""

from jaxface.adapters.options import AdapterOptions
from jaxface.runs.config import Config, MethodOptions

config = Config(name="mtlora_ts_dora", method=MethodOptions("mtlora", AdapterOptions(task_dora=True)))
