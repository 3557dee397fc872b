"""timm's model and PEFT, which adapts it: what tests of adapters in PEFT's format start from."""

import jax

from jaxface.originals.reference import build_original, import_torch
from jaxface.weights import load_encoder
from small_models import KINDS, random_tensors
from weights_convert.checkpoint import write_checkpoint

torch, peft = import_torch("peft")
TOWERS = KINDS["core with heads of 24 channels"]
BLOCKS = r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"
EVERYTHING = BLOCKS + r"|attn_pool\.(q|kv|proj|mlp\.(fc1|fc2))|head"


@jax.jit
def forward(encoder, images):
    return encoder(images)


def plain_encoder(folder):
    """Our encoder with the weights of `timm_model`."""
    path = folder / "model.safetensors"
    write_checkpoint(path, TOWERS, random_tensors(TOWERS))
    return load_encoder(path)


def timm_model():
    return build_original("timm", TOWERS, random_tensors(TOWERS)).modules[0]
