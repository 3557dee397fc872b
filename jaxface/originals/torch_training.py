"""A training step as users of PyTorch have it: timm's encoder, PEFT's adapters, torch's heads, losses and AdamW.

Import it where torch is there. Nothing of it is shared with `jaxface.training`: it is what that is held against.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from jaxface.originals.reference import import_torch

ADAPTED = r".*(attn\.(qkv|proj)|attn_pool\.proj|mlp\.(fc1(_[gx])?|fc2))"
"""timm's linears that LoRA and DoRA adapt: those of the thesis, the blocks' and the pool's but for its inputs."""
LOW_RANK = ("lora", "dora")


def adapted(encoder: Any, method: str, rank: int) -> Any:
    """timm's encoder, the parameters that a method trains asking for gradients. Raises KeyError for a method that PEFT does not have."""
    if method in LOW_RANK:
        (_, peft) = import_torch("peft")
        return peft.get_peft_model(encoder, peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=ADAPTED, use_dora=method == "dora"))
    pool = [encoder.attn_pool] if getattr(encoder, "attn_pool", None) is not None else []
    parts = {"full": [encoder], "lp": [], "ap": pool, "ft4": [*pool, *list(encoder.blocks)[-4:]]}[method]
    encoder.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)
    return encoder


class Model(nn.Module):
    """An encoder, a head for each task, and the logarithms of the tasks' variances.

    Args:
      classes: of each task.
    """

    def __init__(self, encoder: Any, width: int, classes: Mapping[str, int], *, batch_norm: bool = True, dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict({task: _head(width, count, batch_norm, dropout) for task, count in classes.items()})
        self.log_variances = nn.ParameterDict({task: nn.Parameter(torch.zeros(())) for task in classes})

    def forward(self, images: Any, labels: Mapping[str, Any]) -> Any:
        """The loss [] of images [B, 3, H, W] with labels [B], negative where missing, weighed by uncertainty (Kendall et al. 2018)."""
        features = self.encoder(images)
        total = 0.0
        for task, head in self.heads.items():
            variance, known = self.log_variances[task], (labels[task] >= 0).sum().clamp(min=1)  # a batch without any adds nothing
            loss = nn.functional.cross_entropy(head(features), labels[task], ignore_index=-1, reduction="sum") / known
            total = total + torch.exp(-variance) * loss + variance / 2
        return total


def _head(width: int, classes: int, batch_norm: bool, dropout: float) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(norm=nn.BatchNorm1d(width)) if batch_norm else OrderedDict()
    layers |= OrderedDict(drop=nn.Dropout(dropout), hidden=nn.Linear(width, width), gelu=nn.GELU(), out=nn.Linear(width, classes))
    return nn.Sequential(layers)


class Trainer:
    """A model that trains on the CPU, told in torch's words.

    Args:
      rates: of the backbone, the pool and the heads, as `backbone`, `pool` and `head`.
      plus: LoRA+'s ratio of B's rate to A's.
      factors: of all rates in each step, from the first on.
    """

    def __init__(self, model: Model, rates: Mapping[str, float], plus: float, decay: float, factors: Sequence[float], dtype: Any) -> None:
        self.model = model.to(dtype).train()
        self.dtype = dtype
        self.trained = {plain_name(name): x for name, x in model.named_parameters() if x.requires_grad}
        groups = [{"params": [x], "lr": _rate(name, rates, plus)} for name, x in self.trained.items()]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=decay)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: factors[min(step, len(factors) - 1)])
        rotary: Any = getattr(_encoder(model), "rope", None)
        if dtype == torch.float64 and getattr(rotary, "pos_embed", None) is not None:  # else its sines stay those of float32
            rotary.pos_embed = rotary._build_embed_cat(rotary.feat_shape, rotary.bands.double(), dtype=dtype)

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Starts from these, by the names of `trained`."""
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(torch.from_numpy(np.array(arrays[name], order="C")))

    def step(self, batch: Mapping[str, Any]) -> tuple[float, float]:
        """The loss and the gradients' norm of a batch: images uint8 [B, H, W, 3] and labels [B]."""
        images = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).to(self.dtype) / 127.5 - 1
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.model(images.contiguous(), {task: torch.from_numpy(labels).long() for task, labels in batch["labels"].items()})
        loss.backward()
        norm = torch.stack([torch.linalg.vector_norm(x.grad) for x in self.trained.values() if x.grad is not None]).norm()
        self.optimizer.step()
        self.schedule.step()
        return loss.item(), norm.item()

    def parameters(self) -> dict[str, np.ndarray]:
        """What trains, by name."""
        return {name: x.detach().numpy() for name, x in self.trained.items()}


def _encoder(model: Model) -> Any:
    """timm's model, below PEFT's where it is adapted."""
    return model.encoder.get_base_model() if hasattr(model.encoder, "get_base_model") else model.encoder


def plain_name(name: str) -> str:
    """A parameter's name without what PEFT puts around it: `encoder.blocks.0.attn.qkv.lora_A.weight`."""
    return re.sub(r"base_model\.model\.|\.default|\.base_layer", "", name).replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def _rate(name: str, rates: Mapping[str, float], plus: float) -> float:
    if not name.startswith("encoder."):
        return rates["head"]
    return rates["pool" if ".attn_pool." in name else "backbone"] * (plus if ".lora_B." in name else 1.0)
