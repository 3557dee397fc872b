"""LoRA with LoRA+, without DoRA's magnitudes (thesis, table 4.16).

python -m jaxface.train --config configs/lora.py --encoder.weights PE-Core-L14-336.pt --data.sets data/fairface data/lagenda ...
"""

from jaxface.runs.config import Config, MethodOptions

config = Config(name="lora", method=MethodOptions("lora"))
