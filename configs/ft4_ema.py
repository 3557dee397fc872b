"""FT4 with the losses balanced by their moving averages (thesis, section 4.4.1, table 4.7).

python -m jaxface.train --config configs/ft4_ema.py --encoder.weights PE-Core-L14-336.pt --data.sets data/fairface data/lagenda ...
"""

from jaxface.runs.config import Config, MethodOptions

config = Config(name="ft4_ema", method=MethodOptions("ft4"), balancing="ema")
