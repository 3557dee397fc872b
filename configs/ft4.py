"""FT4: the last four blocks, the attention pool and the heads (thesis, section 3.5).

python -m jaxface.train --config configs/ft4.py --encoder.weights PE-Core-L14-336.pt --data.sets data/fairface data/lagenda ...
"""

from jaxface.runs.config import Config, MethodOptions

config = Config(name="ft4", method=MethodOptions("ft4"))
