"""DoRA on age groups as ordinal regression (thesis, section 3.1: tried, and not better than cross-entropy).

python -m jaxface.train --config configs/age_ordinal.py --encoder.weights PE-Core-L14-336.pt --data.sets data/fairface data/lagenda ...
"""

from jaxface.runs.config import Config, MethodOptions

config = Config(name="age_ordinal", tasks=("age",), method=MethodOptions("dora"), losses={"age": "coral"})
