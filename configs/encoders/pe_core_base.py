"""The thesis's DoRA experiment on PE-Core B: --config configs/encoders/pe_core_base.py --encoder.weights FILE --data.sets ..."""

from jaxface.runs.config import Config, EncoderOptions, MethodOptions

config = Config(name="encoders/pe_core_base", encoder=EncoderOptions(variant="PE-Core-B16-224"), method=MethodOptions("dora"))
