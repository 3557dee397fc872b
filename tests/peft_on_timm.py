"""timm's model and PEFT, which adapts it: what tests of adapters in PEFT's format start from."""

import copy
from functools import cache

import jax

from jaxface.originals.reference import build_original, import_torch
from jaxface.weights import load_encoder
from small_models import KINDS, random_tensors
from weights_convert.checkpoint import write_checkpoint

torch, peft = import_torch("peft")
TOWERS = KINDS["core with heads of 24 channels"]
BLOCKS = r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"
EVERYTHING = BLOCKS + r"|attn_pool\.(q|kv|proj|mlp\.(fc1|fc2))|head"


@jax.tree_util.register_static
class Static:
    """What is no array of a module, as an argument of a compiled function."""

    def __init__(self, value):
        self.value = value

    def __hash__(self):
        return hash(self.value.tree)

    def __eq__(self, other):
        return self.value.tree == other.value.tree


@jax.jit
def forward(encoder, images):
    return encoder(images)


def plain_encoder(folder):
    """Our encoder with the weights of `timm_model`."""
    path = folder / "model.safetensors"
    write_checkpoint(path, TOWERS, random_tensors(TOWERS))
    return load_encoder(path)


def adapted_by_peft(**options):
    """timm's model adapted by PEFT, A, B and magnitude random."""
    model = peft.get_peft_model(timm_model(), peft.LoraConfig(**options))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude" in name:
                parameter *= 0.5 + torch.rand(parameter.shape, generator=generator)
            elif "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@cache
def _built():
    return build_original("timm", TOWERS, random_tensors(TOWERS)).modules[0]


def timm_model():
    """A copy: PEFT puts its layers into the model."""
    return copy.deepcopy(_built())
