"""Pairs that can be compared: our towers and their originals, and any two models that a user's files make."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxface.errors import UserError
from jaxface.imports import run_file
from jaxface.models.clip import Clip
from jaxface.models.config import PIXELS, EncoderConfig
from jaxface.models.encoder import Encoder, as_trained
from jaxface.models.positions import RESIZE, resize_positions
from jaxface.models.rope import ROPES, rope_angles
from jaxface.models.tree import shallow_copy
from jaxface.originals.certificate import Pair
from jaxface.originals.gradients import nnx_gradients, torch_gradients
from jaxface.originals.hooks import FUSED, first_tensor, to_numpy
from jaxface.originals.reference import Original, import_torch
from jaxface.originals.values import OUTPUT, Values, nnx_values, parameters_of, torch_values
from weights_convert.layouts import LAYOUTS, decode, table
from weights_convert.towers import Towers


def tower_pair(
    model: Encoder | Clip,
    original: Original,
    against: str,
    towers: Towers,
    images: np.ndarray,
    ids: np.ndarray | None,
    gradients: bool = False,
) -> Pair:
    """An encoder or both towers, and the original that was built for the same configuration.

    Args:
      images: [B, H, W, 3] in -1..1, float32.
      ids: token ids [T, L] for both towers, or None for the vision tower alone.
      gradients: whether what comes back belongs to the values, see `jaxface.originals.gradients`.
    """
    if isinstance(model, Clip) and (original.encode_text is None or ids is None):
        model = model.visual
    layout, both = LAYOUTS.get(against), isinstance(model, Clip)
    rows = table(layout, layout.forms[0 if towers.text else -1], (towers.vision, towers.text if both else None))
    inputs = [images.astype(np.float32)] if not both or ids is None else [images.astype(np.float32), ids]
    module = original.modules[0]

    def call(images: Any, ids: Any = None) -> dict[str, Any]:
        found = {"features": original.vision(images)}
        return found if ids is None or original.encode_text is None else found | {"text.features": original.encode_text(ids)}

    def theirs(precision: str) -> Values:
        found = _torch_run(module.to(_dtype(precision)), call, inputs, precision, gradients)
        if both:
            scale, bias = (0.0 if x is None else np.float64(x[...]) for x in (model.logit_scale, model.logit_bias))
            unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (found["features"], found["text.features"])]
            found["logits"] = np.exp(scale) * unit[0] @ unit[1].T + bias
        return found

    def translate(_: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name.removeprefix("visual."): array for name, array in decode(rows, tensors)[0].items()}

    def parameters() -> tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]:
        return _arrays(model), {name: to_numpy(tensor.float()) for name, tensor in module.state_dict().items()}

    encoder = model.visual if isinstance(model, Clip) else model
    ours = partial(nnx_gradients if gradients else nnx_values, model, *inputs)
    return Pair(ours, theirs, _modules(rows, original, towers), parameters, translate, partial(_tools, encoder, images))


def _dtype(precision: str) -> Any:
    import torch

    return getattr(torch, precision)


def _torch_run(module: Any, call: Callable[..., Any], inputs: Sequence[np.ndarray], precision: str, gradients: bool) -> Values:
    """A torch model's values, called with arrays: numbers in a precision, images [B, H, W, C] as [B, C, H, W], ids as they are."""
    import torch

    arrays = (torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2) if x.ndim == 4 else x)) for x in map(np.asarray, inputs))
    tensors = [x.to(_dtype(precision)) if x.is_floating_point() else x.long() for x in arrays]
    return torch_gradients(module, call, tensors) if gradients else torch_values(module, partial(call, *tensors))


def _arrays(model: Any) -> dict[str, np.ndarray]:
    """The numbers of a module by name; no random keys."""
    return {name: np.asarray(x) for name, x in parameters_of(model).items() if jnp.issubdtype(x.dtype, jnp.number)}


def _modules(rows: Sequence[Any], original: Original, towers: Towers) -> dict[str, str]:
    """The original's module for each of ours, from the table of their parameters and from where its blocks are."""
    paths = {id(module): name for name, module in original.modules[0].named_modules()}
    found = {"embedding": paths.get(id(original.start), "")}
    found |= {f"blocks.{i}": paths[id(block)] for i, block in enumerate(original.blocks)}
    found |= {f"text.blocks.{i}": paths[id(block)] for i, block in enumerate(original.text_blocks)}
    known = set(paths.values())
    for row in rows:
        if row.theirs.endswith((".weight", ".bias")) and row.share is None and row.piece is None and "." in row.ours:
            for i in range(_depth(row.ours, towers)):
                ours, theirs = (name.format(i=i).rpartition(".")[0] for name in (row.ours.removeprefix("visual."), row.theirs))
                while ours and theirs in known and theirs:
                    found[ours] = min(found.get(ours, theirs), theirs, key=len)
                    ours, theirs = ours.rpartition(".")[0], theirs.rpartition(".")[0]
        if row.theirs.endswith(".in_proj_weight"):
            ours, theirs = (name.rpartition(".")[0] for name in (row.ours.removeprefix("visual."), row.theirs))
            for i in range(_depth(row.ours, towers)):
                found[ours.format(i=i)] = f"{theirs.format(i=i)}.{FUSED[row.share]}"
        if row.piece is not None:  # what is missing in the product is added behind it
            ours = row.ours.removeprefix("visual.").rpartition(".")[0]
            found |= {ours.format(i=i): "" for i in range(_depth(row.ours, towers))}
    return found | {"tokens": found.get("norm_post", found[f"blocks.{towers.vision.depth - 1}"])}


def _depth(name: str, towers: Towers) -> int:
    """How many blocks a name with `{i}` stands for; 1 for others."""
    tower = towers.text if name.startswith("text.") and towers.text else towers.vision
    return tower.depth if "{i}" in name else 1


def _tools(encoder: Encoder, images: np.ndarray) -> dict[str, Any]:
    """What the causes try on a vision tower."""
    c: EncoderConfig = encoder.config
    rows, columns = images.shape[1] // c.patch, images.shape[2] // c.patch
    angles = {}
    for kind in ROPES:
        usual = rope_angles(kind, rows, columns, c.width // c.heads, c.class_token, c.registers)
        assert usual is not None
        x, y = np.split(usual, 2, -1)
        angles |= {f"rotary positions {kind}": usual, f"rotary positions {kind} with x and y exchanged": np.concatenate([y, x], -1)}
        angles[f"rotary positions {kind} turned backwards"] = -usual
        angles[f"rotary positions {kind} counted from {0 if c.class_token else 1}"] = _counted_otherwise(kind, rows, columns, c)
    unit = images / 2 + 0.5
    pixels = {name: (unit - np.asarray(mean)) / np.asarray(deviation) for name, (mean, deviation) in PIXELS.items()}
    tools = {"heads": c.heads, "angles": angles, "patch": c.patch, "pixels": pixels}
    tools["images"] = np.asarray(as_trained(jnp.asarray(images), c))
    if encoder.positions is not None and (rows, columns) != (c.grid, c.grid):
        kinds = {"as here": c.resize, **{name: name for name in RESIZE}}
        resized = {
            word: np.asarray(resize_positions(encoder.positions[...], rows, columns, c.placed, kind)) for word, kind in kinds.items()
        }
        tools["positions"] = resized
    return tools


def _counted_otherwise(kind: str, rows: int, columns: int, c: EncoderConfig) -> np.ndarray:
    """Angles whose positions start as if there were a class token where there is none, or none where there is one."""
    patches = ROPES[kind].angles(rows, columns, c.width // c.heads, not c.class_token)
    return np.concatenate([np.zeros((c.class_token + c.registers, patches.shape[-1])), patches])


def files_pair(
    ours: str,
    theirs: str,
    inputs: Sequence[np.ndarray],
    weights: Path | None = None,
    their_weights: Path | None = None,
    gradients: bool = False,
) -> Pair:
    """Two models that functions of a user's files make, `FILE.py:NAME` each; see `made_pair`.

    A function gives a model, or a model and a table of modules (of ours: the original's name for each of ours). One that takes an
    argument is given the weights. Our file's function `inputs`, if it has one, gives the arrays that both are called with.

    Raises UserError for what is no such function, and for what one of them or its model raises.
    """
    module, make = _maker(ours)
    their_make = _maker(theirs)[1]
    if hasattr(module, "inputs"):
        given = _in_a_line(ours, module.inputs)
        inputs = given if isinstance(given, tuple) else (given,)
    made = _in_a_line(ours, _make, make, weights)
    original = _in_a_line(theirs, _make, their_make, their_weights or weights)
    model, names = made if isinstance(made, tuple) else (made, {})
    pair = made_pair(model, original[0] if isinstance(original, tuple) else original, inputs, names, gradients)
    return pair._replace(ours=partial(_in_a_line, ours, pair.ours), theirs=partial(_in_a_line, theirs, pair.theirs))


def _in_a_line(spec: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function gives. Raises UserError for whatever a user's code raises in it."""
    try:
        return function(*arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{spec}: {type(error).__name__}: {error}") from error


def _maker(spec: str) -> tuple[Any, Callable[..., Any]]:
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"{spec}: expected FILE.py:NAME, a function of a Python file")
    module = run_file(path.resolve(), f"jaxface_compared_{path.stem}")
    if not callable(make := getattr(module, name, None)):
        raise UserError(f"{spec}: {path} has no function {name!r}")
    return module, make


def _make(make: Callable[..., Any], weights: Path | None) -> Any:
    return make(weights) if inspect.signature(make).parameters else make()


def made_pair(
    model: nnx.Module, original: Any, inputs: Sequence[np.ndarray], names: Mapping[str, str] | None = None, gradients: bool = False
) -> Pair:
    """An NNX module and a torch module, called with the same arrays.

    Images [B, H, W, C] reach the original as [B, C, H, W].

    Args:
      names: the original's module for each of ours; None finds them by name, or by order and shape.
      gradients: whether what comes back belongs to the values, see `jaxface.originals.gradients`.

    Raises UserError where a model is of another kind.
    """
    (torch,) = import_torch()
    if not isinstance(model, nnx.Module) or not isinstance(original, torch.nn.Module):
        raise UserError(f"expected an nnx.Module and a torch.nn.Module, got {type(model).__name__} and {type(original).__name__}")
    model = shallow_copy(model)
    model.eval()

    def theirs(precision: str) -> Values:
        copied = copy.deepcopy(original).eval().to(_dtype(precision)).requires_grad_(True)

        def call(*tensors: Any) -> dict[str, Any]:
            result = first_tensor(copied(*tensors))
            return {} if result is None else {OUTPUT: result}

        return _torch_run(copied, call, inputs, precision, gradients)

    def parameters() -> tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]:
        return _arrays(model), {name: to_numpy(tensor.float()) for name, tensor in original.state_dict().items()}

    ours = partial(nnx_gradients if gradients else nnx_values, model, *inputs)
    return Pair(ours, theirs, names or {}, parameters, partial(_under_our_names, list(_arrays(model))), dict)


WORDS = {"kernel": "weight", "scale": "weight", "embedding": "weight", "mean": "running_mean", "var": "running_var"}
"""torch's words for NNX's parameters, where they are not the same."""


def _under_our_names(ours: Sequence[str], found: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """torch's tensors as ours: of modules that belong together, kernels turned."""
    result = {}
    for name in ours:
        module, _, word = name.rpartition(".")
        tensor = tensors.get(f"{found.get(module, module)}.{WORDS.get(word, word)}".removeprefix("."))
        if tensor is not None:
            result[name] = tensor.transpose(*range(2, tensor.ndim), 1, 0) if word == "kernel" else tensor
    return result
