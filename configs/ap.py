"""AP: the attention pool, batch norm and heads (thesis, section 3.4).

python -m jaxface.train --config configs/ap.py --encoder.weights PE-Core-L14-336.pt --data.sets data/fairface data/lagenda ...
"""

from jaxface.runs.config import Config, MethodOptions

config = Config(name="ap", method=MethodOptions("ap"))
