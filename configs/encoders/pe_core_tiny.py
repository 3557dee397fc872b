"""The thesis's DoRA experiment on PE-Core T: --config configs/encoders/pe_core_tiny.py --encoder.weights FILE --data.sets ..."""

from jaxface.runs.config import Config, EncoderOptions, MethodOptions

config = Config(name="encoders/pe_core_tiny", encoder=EncoderOptions(variant="PE-Core-T16-384"), method=MethodOptions("dora"))
