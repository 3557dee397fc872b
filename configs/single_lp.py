"""LP, one model per task: a run each for age, gender and emotion (thesis, section 4.3, tables 4.4 to 4.6).

python -m jaxface.train --config configs/single_lp.py --encoder.weights PE-Core-L14-336.pt --data.sets data/fairface data/lagenda ...
"""

from jaxface.runs.config import Config, MethodOptions

config = Config(name="single_lp", method=MethodOptions("lp"), grid=("tasks=age,gender,emotion",))
