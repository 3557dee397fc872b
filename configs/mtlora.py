"""MTLoRA: shared DoRA in all blocks but the last; there and in the pool one plain LoRA and one probe per task (thesis, section 3.6.1).

The thesis's parameter counts say that its DoRA magnitudes stayed frozen.

python -m jaxface.train --config configs/mtlora.py --encoder.weights PE-Core-L14-336.pt --data.sets data/fairface data/lagenda ...
"""

from jaxface.adapters.options import AdapterOptions
from jaxface.runs.config import Config, MethodOptions

config = Config(name="mtlora", method=MethodOptions("mtlora", AdapterOptions(train_magnitude=False)))
