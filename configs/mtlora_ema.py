"""MTLoRA with the losses balanced by their moving averages (thesis, section 4.4.1, table 4.7).

python -m jaxface.train --config configs/mtlora_ema.py --encoder.weights PE-Core-L14-336.pt --data.sets data/fairface data/lagenda ...
"""

from jaxface.adapters.options import AdapterOptions
from jaxface.runs.config import Config, MethodOptions

config = Config(name="mtlora_ema", method=MethodOptions("mtlora", AdapterOptions(train_magnitude=False)), balancing="ema")
