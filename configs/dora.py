"""DoRA with LoRA+ on every linear, multi-task with learned uncertainty weights (thesis, sections 3.6 and 3.7.3).

python -m jaxface.train --config configs/dora.py --encoder.weights PE-Core-L14-336.pt --data.sets data/fairface data/lagenda ...
"""

from jaxface.runs.config import Config, MethodOptions

config = Config(name="dora", method=MethodOptions("dora"))
