"""The thesis's DoRA experiment on DINOv2 L: --config configs/encoders/dinov2_large.py --encoder.weights FILE --data.sets ..."""

from jaxface.runs.config import Config, EncoderOptions, MethodOptions

config = Config(name="encoders/dinov2_large", encoder=EncoderOptions(variant="DINOv2-L14"), method=MethodOptions("dora"))
