"""LP: the heads alone on frozen features, all tasks in one run.

The thesis trains each head by itself and puts them together (sections 3.3 and 4.4.1): `single_lp.py`, then `python -m jaxface.assemble`.

python -m jaxface.train --config configs/lp.py --encoder.weights PE-Core-L14-336.pt --data.sets data/fairface data/lagenda ...
"""

from jaxface.runs.config import Config, MethodOptions

config = Config(name="lp", method=MethodOptions("lp"))
