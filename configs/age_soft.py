"""DoRA on age groups with labels smeared over their neighbours, beside the ordinal losses.

python -m jaxface.train --config configs/age_soft.py --encoder.weights PE-Core-L14-336.pt --data.sets data/fairface data/lagenda ...
"""

from jaxface.runs.config import Config, MethodOptions

config = Config(name="age_soft", tasks=("age",), method=MethodOptions("dora"), losses={"age": "soft"})
