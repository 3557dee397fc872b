"""What comes back through two models: the gradients of all that they give by what modules give, by parameters and by inputs, by name.

All that a model gives is weighed by the same numbers on both sides: one product of a vector and the Jacobian.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxface.errors import UserError
from jaxface.models.tree import flatten
from jaxface.originals.hooks import INPUT, first_tensor, hooked, to_numpy
from jaxface.originals.values import COMPOSED, OUTPUT, Values, parameters_of, run_recorded

GRADIENT = ".gradient"
"""Behind the name of a module: the gradient by what it gives; behind a parameter's, or `inputs.0`: by that."""
RESULTS = (OUTPUT, "features", "text.features")
"""What a model gives, of those that a pass has."""


def weights(shape: Sequence[int]) -> np.ndarray:
    """The weight of each value of a result: multiples of 1 / 64, which no precision rounds."""
    return (np.round(64 * np.cos(np.arange(np.prod(shape, dtype=int)))) / 64).reshape(shape).astype(np.float32)


def nnx_gradients(model: Any, *inputs: np.ndarray) -> Values:
    """The values of a pass of an NNX module and the gradients, in the order of the pass and back."""
    arrays, structure = flatten(model)
    trains = {name for name, kind in structure.kinds.items() if issubclass(kind, nnx.Param)}
    moving = {name: leaf for name, leaf in arrays.items() if name in trains and jnp.issubdtype(leaf.dtype, jnp.floating)}
    still = {name: leaf for name, leaf in arrays.items() if name not in moving}
    moved = {str(i): jnp.asarray(x) for i, x in enumerate(inputs) if np.issubdtype(np.asarray(x).dtype, np.floating)}
    order: list[str] = []

    def run(moving: Any, moved: Any, added: Any, still: Any) -> tuple[list[jax.Array], list[jax.Array]]:
        arguments = [moved.get(str(i), x) for i, x in enumerate(inputs)]
        values = run_recorded(structure.build(moving, still), *arguments, added=added)
        order[:] = values
        return [values[name] for name in RESULTS if name in values], list(values.values())

    @jax.jit
    def back(moving: Any, moved: Any, added: Any, still: Any) -> tuple[Any, list[jax.Array]]:
        results, vjp, values = jax.vjp(lambda *parts: run(*parts, still), moving, moved, added, has_aux=True)
        return vjp([jnp.asarray(weights(x.shape), x.dtype) for x in results]), values

    with jax.default_matmul_precision("highest"):
        shapes = jax.eval_shape(run, moving, moved, {}, still)[1]
        modules = {name: x for name, x in zip(order, shapes, strict=True) if not name.endswith(INPUT) and name not in COMPOSED}
        zeros = {name: jnp.zeros(x.shape, x.dtype) for name, x in modules.items()}
        (by_parameter, by_input, by_module), values = back(moving, moved, zeros, still)
    found = dict(zip(order, values, strict=True))
    nothing = {name: np.zeros(leaf.shape, np.int8) for name, leaf in still.items()}  # has no gradient
    found |= _backwards(by_module, parameters_of(structure.build(by_parameter, nothing)), by_input, list(modules))
    return {name: np.asarray(value) for name, value in found.items()}


def _backwards(
    by_module: Mapping[str, Any], by_parameter: Mapping[str, Any], by_input: Mapping[str, Any], order: list[str]
) -> dict[str, Any]:
    """All gradients by name, in the order in which they come about: of a module first what it gives, then its parameters."""
    owner = {name: max((module for module in order if name.startswith(f"{module}.")), key=len, default="") for name in by_parameter}
    found = {}
    for module in [*reversed(order), ""]:
        found |= {f"{module}{GRADIENT}": by_module[module]} if module else {}
        found |= {f"{name}{GRADIENT}": array for name, array in by_parameter.items() if owner[name] == module and _is_number(array)}
    return found | {f"inputs.{name}{GRADIENT}": array for name, array in by_input.items()}


def _is_number(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating)


def torch_gradients(model: Any, call: Callable[..., Mapping[str, Any]], inputs: Sequence[Any]) -> Values:
    """The values of a pass of a torch model, while `call(*inputs)` runs it, and the gradients, under torch's names."""
    import torch

    values: Values = {}
    nodes: dict[str, Any] = {}

    def take(name: str, value: Any) -> None:
        if name not in values and (tensor := first_tensor(value)) is not None:
            values[name] = to_numpy(tensor).copy()

    def give(name: str, value: Any) -> Any:
        take(name, value)
        tensor = first_tensor(value)
        if name in nodes or tensor is None or not tensor.requires_grad:
            return None
        nodes[name] = tensor.view_as(tensor)  # its own: what comes back to it comes through what this module gave
        given = nodes[name].clone()  # which may be written over
        return (given, *value[1:]) if isinstance(value, tuple) else given

    moved = {f"inputs.{i}": x.requires_grad_() if x.is_floating_point() else x for i, x in enumerate(inputs)}
    with hooked(model, take, give), torch.enable_grad():
        results = dict(call(*moved.values()))
        by = nodes | {name: x for name, x in [*model.named_parameters(), *moved.items()] if x.requires_grad}
        given = [results[name] for name in RESULTS if name in results and results[name].requires_grad]
        if not given:
            raise UserError("the original gives no array that has a gradient, or several values: compare without gradients")
        cotangents = [torch.from_numpy(weights(x.shape)).to(x.dtype) for x in given]
        found = torch.autograd.grad(given, list(by.values()), cotangents, allow_unused=True, materialize_grads=True)
    values |= {name: to_numpy(result) for name, result in results.items()}
    return values | {f"{name}{GRADIENT}": to_numpy(gradient) for name, gradient in zip(by, found, strict=True)}
