"""Multi-task DoRA balanced by GradNorm (thesis, section 5.2).

python -m jaxface.train --config configs/dora_gradnorm.py --encoder.weights PE-Core-L14-336.pt --data.sets data/fairface data/lagenda ...
"""

from jaxface.runs.config import Config, MethodOptions

config = Config(name="dora_gradnorm", method=MethodOptions("dora"), balancing="gradnorm")
