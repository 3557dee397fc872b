"""The thesis's DoRA experiment on SigLIP 2 L: --config configs/encoders/siglip2_large.py --encoder.weights FILE --data.sets ..."""

from jaxface.runs.config import Config, EncoderOptions, MethodOptions

config = Config(name="encoders/siglip2_large", encoder=EncoderOptions(variant="SigLIP2-L16-384"), method=MethodOptions("dora"))
