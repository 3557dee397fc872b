"""LP with the simple head, dropout and one linear layer, one model per task (thesis, section 3.3).

python -m jaxface.train --config configs/single_lp_simple_head.py --encoder.weights PE-Core-L14-336.pt --data.sets data/raf_db ...
"""

from jaxface.runs.config import Config, HeadOptions, MethodOptions

config = Config(name="single_lp_simple_head", method=MethodOptions("lp"), head=HeadOptions(deep=False), grid=("tasks=age,gender,emotion",))
