"""The thesis's DoRA experiment on PE-Core S: --config configs/encoders/pe_core_small.py --encoder.weights FILE --data.sets ..."""

from jaxface.runs.config import Config, EncoderOptions, MethodOptions

config = Config(name="encoders/pe_core_small", encoder=EncoderOptions(variant="PE-Core-S16-384"), method=MethodOptions("dora"))
