"""What a torch model's modules take and give while it runs, fused attention's projections among them, which no module of torch's makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

INPUT = ".input"
"""Behind a module's name: what it was given."""
FUSED = {None: "in_proj", (0, 1, 3): "in_proj.q", (1, 3, 3): "in_proj.kv"}
"""What is added to an attention's name for the products with shares (first, last, of how many) of its fused array `in_proj_weight`."""


@contextmanager
def hooked(model: Any, take: Callable[[str, Any], None], give: Callable[[str, Any], Any]) -> Iterator[None]:
    """Has functions called with the name and the arguments, and with the name and the result, of every module of a torch model.

    Args:
      give: what it returns, if not None, takes the place of the result.
    """
    import torch

    hooks = []
    for name, module in model.named_modules():
        if name:
            hooks.append(module.register_forward_pre_hook(lambda _, args, name=name: take(name + INPUT, args)))
            hooks.append(module.register_forward_hook(lambda _, __, result, name=name: give(name, result)))
    places, linear, asked = _fused(model), torch.nn.functional.linear, []

    def watched(x: Any, weight: Any, bias: Any = None) -> Any:
        result, name = linear(x, weight, bias), places.get((weight.data_ptr(), len(weight)))
        if name is None:
            return result
        if not name.endswith((".out_proj", ".kv")):
            asked[:] = x.shape[:-1]
        shape = (*asked, -1) if result.ndim == 2 and name.endswith(".out_proj") else result.shape  # torch's attention has its rows joined
        take(name + INPUT, x.reshape(*shape[:-1], -1))
        instead = give(name, result.reshape(shape))
        return result if instead is None else instead.reshape(result.shape)

    try:
        with in_place_of("linear", watched):
            yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def in_place_of(name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Has torch's layers and attentions call a function of one's own for that one of `torch.nn.functional`."""
    import torch

    functional: Any = torch.nn.functional
    usual, fast = getattr(functional, name), torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # which computes all of an attention at once
    setattr(functional, name, function)
    try:
        yield
    finally:
        setattr(functional, name, usual)
        torch.backends.mha.set_fastpath_enabled(fast)


def _fused(model: Any) -> dict[tuple[int, int], str]:
    """The names of the products that attentions form without a module, by where the weight lies and how many rows it has."""
    found = {}
    for name, module in model.named_modules():
        weight = getattr(module, "in_proj_weight", None)
        if weight is None:
            continue
        for share, word in FUSED.items():
            first, last, count = share or (0, 1, 1)
            part = weight[len(weight) * first // count : len(weight) * last // count]
            found[part.data_ptr(), len(part)] = f"{name}.{word}"
        found[module.out_proj.weight.data_ptr(), len(module.out_proj.weight)] = f"{name}.out_proj"
    return found


def first_tensor(value: Any) -> Any:
    """The floating tensor that a value is, or the first of a tuple; None where there is none."""
    value = value[0] if isinstance(value, tuple) and value else value
    return value if hasattr(value, "is_floating_point") and value.is_floating_point() else None


def to_numpy(tensor: Any) -> np.ndarray:
    """A tensor in float64 if it is, else in float32."""
    return (tensor.detach() if str(tensor.dtype) == "torch.float64" else tensor.detach().float()).numpy()
