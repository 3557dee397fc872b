"""Full fine-tuning: everything trains (thesis, section 3.4).

python -m jaxface.train --config configs/full.py --encoder.weights PE-Core-L14-336.pt --data.sets data/fairface data/lagenda ...
"""

from jaxface.runs.config import Config, MethodOptions

config = Config(name="full", method=MethodOptions("full"))
