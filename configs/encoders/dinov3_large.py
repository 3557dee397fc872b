"""The thesis's DoRA experiment on DINOv3 L: --config configs/encoders/dinov3_large.py --encoder.weights FILE --data.sets ..."""

from jaxface.runs.config import Config, EncoderOptions, MethodOptions

config = Config(name="encoders/dinov3_large", encoder=EncoderOptions(variant="DINOv3-L16"), method=MethodOptions("dora"))
