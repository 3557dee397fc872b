"""DoRA with LoRA+ on every linear, multi-task with learned uncertainty weights (thesis, section 3.4.4).

python -m jaxface.train --config configs/dora.py --encoder.weights PE-Core-L14-336.pt --data.sets data/fairface data/lagenda ...
"""

from jaxface.runs.config import Config, MethodOptions

config = Config(name="dora", method=MethodOptions("dora"))
