"""The thesis's DoRA experiment on PE-Core L: --config configs/encoders/pe_core_large.py --encoder.weights FILE --data.sets ..."""

from jaxface.runs.config import Config, EncoderOptions, MethodOptions

config = Config(name="encoders/pe_core_large", encoder=EncoderOptions(variant="PE-Core-L14-336"), method=MethodOptions("dora"))
