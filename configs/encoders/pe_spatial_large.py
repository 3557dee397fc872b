"""The thesis's DoRA experiment on PE-Spatial L: --config configs/encoders/pe_spatial_large.py --encoder.weights FILE --data.sets ..."""

from jaxface.runs.config import Config, EncoderOptions, MethodOptions

config = Config(name="encoders/pe_spatial_large", encoder=EncoderOptions(variant="PE-Spatial-L14-448"), method=MethodOptions("dora"))
