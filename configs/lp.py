"""LP: the heads alone on frozen features, one task at a time (thesis, section 3.4).

python -m jaxface.train --config configs/lp.py --encoder.weights PE-Core-L14-336.pt --data.sets data/fairface data/lagenda ...
"""

from jaxface.runs.config import Config, MethodOptions

config = Config(name="lp", method=MethodOptions("lp"))
