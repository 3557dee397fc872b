"""DoRA on single years of age by CORAL, answers mapped back to the groups (thesis, section 5.2).

python -m jaxface.train --config configs/age_years.py --encoder.weights PE-Core-L14-336.pt --data.sets data/fairface data/lagenda ...
"""

from jaxface.runs.config import Config, MethodOptions

config = Config(name="age_years", tasks=("age_years",), method=MethodOptions("dora"), losses={"age_years": "coral"})
