"""Full fine-tuning: everything trains. The thesis did not run it for lack of memory (section 3.5).

python -m jaxface.train --config configs/full.py --encoder.weights PE-Core-L14-336.pt --data.sets data/fairface data/lagenda ...
"""

from jaxface.runs.config import Config, MethodOptions

config = Config(name="full", method=MethodOptions("full"))
