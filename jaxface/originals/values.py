"""What the modules of a model take and give in one pass, by name: of NNX modules and of torch's alike, in the order of the pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from difflib import SequenceMatcher
from functools import wraps
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxface.models.clip import Clip
from jaxface.models.encoder import Encoder
from jaxface.models.text import Text
from jaxface.models.tree import arrays_of
from jaxface.originals.hooks import INPUT, first_tensor, hooked, to_numpy

Values = dict[str, np.ndarray]
"""What a module gives, under its dotted path, and what it was given, under the path with `INPUT` behind it."""
OUTPUT = "output"
"""What the whole model gives."""
COMPOSED = ("embedding", "tokens", "features", "text.features", "logits", OUTPUT)
"""Values that no module gives alone."""


@contextmanager
def recorded(modules: Mapping[str, Any], added: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What NNX modules take and give while the context lasts, by their names: first arguments and results; of several calls the first.

    Args:
      added: arrays to add to what some of them give.
    """
    names = {id(module): name for name, module in modules.items()}
    values: dict[str, Any] = {}

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def wrapper(self: Any, *args: Any, **options: Any) -> Any:
            name = names.get(id(self))
            if name is not None and args and isinstance(args[0], jax.Array):
                values.setdefault(name + INPUT, args[0])
            result = call(self, *args, **options)
            if name is not None and isinstance(result, jax.Array) and name not in values:
                values[name] = result = result + added[name] if name in added else result
            return result

        return wrapper

    with ExitStack() as stack:
        for kind in {type(module) for module in modules.values()}:
            stack.enter_context(_instead(kind, watched(kind.__call__)))
        yield values


@contextmanager
def _instead(kind: type, call: Callable[..., Any]) -> Iterator[None]:
    """Another `__call__` of a class while the context lasts."""
    own = kind.__dict__.get("__call__")
    setattr(kind, "__call__", call)  # noqa: B010  a checker knows no such assignment
    try:
        yield
    finally:
        if own is None:
            delattr(kind, "__call__")
        else:
            setattr(kind, "__call__", own)  # noqa: B010


def nnx_values(model: Any, *inputs: np.ndarray) -> Values:
    """Of any NNX module, called with the inputs; our own towers give their blocks, which stand stacked, one by one."""
    order: list[str] = []

    @jax.jit
    def run(model: Any, *inputs: jax.Array) -> list[jax.Array]:
        values = run_recorded(model, *inputs)
        order[:] = values
        return list(values.values())

    with jax.default_matmul_precision("highest"):
        results = run(model, *inputs)
    return {name: np.asarray(value) for name, value in zip(order, results, strict=True)}


def run_recorded(model: Any, *inputs: jax.Array, added: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All values of a pass of an NNX module, while it is traced; see `recorded`."""
    run = next((run for kind, run in {Clip: _clip_pass, Encoder: _encoder_pass}.items() if isinstance(model, kind)), _plain_pass)
    return run(model, *inputs, added=added or {})


def _plain_pass(model: Any, *inputs: jax.Array, added: Mapping[str, Any]) -> dict[str, Any]:
    with recorded(_named(model), added) as values:
        result = model(*inputs)
    return values | ({OUTPUT: result} if isinstance(result, jax.Array) else {})


def _encoder_pass(encoder: Encoder, images: jax.Array, *, added: Mapping[str, Any]) -> dict[str, Any]:
    blocks = unstacked(encoder)
    beside = {name: module for name, module in _named(encoder).items() if not name.startswith("stages.")}
    with recorded(beside | _of_blocks(blocks), added) as values:
        x, angles = encoder.embed(images)
        values["embedding"] = x
        for block in blocks:
            x = block(x, angles)
        values["tokens"] = x if encoder.norm_post is None else encoder.norm_post(x)
        values["features"] = encoder.pooled(values["tokens"])
    return values


def _clip_pass(clip: Clip, images: jax.Array, ids: jax.Array, *, added: Mapping[str, Any]) -> dict[str, Any]:
    values = _encoder_pass(clip.visual, images, added=added)
    text, blocks = clip.text, unstacked(clip.text)
    beside = {name: module for name, module in _named(text).items() if not name.startswith("stages.")}
    theirs = {name.removeprefix("text."): array for name, array in added.items() if name.startswith("text.")}
    with recorded(beside | _of_blocks(blocks), theirs) as own:
        x = text.embed(ids)
        for block in blocks:
            x = block(x, None, text.config.causal)
        features = text.pooled(x, ids)
    logits = clip.logits(values["features"], features)
    return values | {f"text.{name}": value for name, value in own.items()} | {"text.features": features, "logits": logits}


def unstacked(tower: Any) -> list[Any]:
    """The blocks of a tower, each a module of its own."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], stage) for stage in tower.stages for i in range(len(stage.norm1.scale[...]))]


def _named(model: Any) -> dict[str, Any]:
    return {".".join(map(str, path)): module for path, module in nnx.iter_modules(model) if path}


def _of_blocks(blocks: Sequence[Any]) -> dict[str, Any]:
    return {
        ".".join(("blocks", str(i), *map(str, path))): module for i, block in enumerate(blocks) for path, module in nnx.iter_modules(block)
    }


def parameters_of(model: Any) -> dict[str, Any]:
    """Every array of an NNX module under its name; of our towers blocks counted, of both towers the text tower's under `text.`."""
    if isinstance(model, Clip):
        beside = {name: array for name, array in arrays_of(model).items() if "." not in name}
        return parameters_of(model.visual) | {f"text.{name}": array for name, array in parameters_of(model.text).items()} | beside
    if not isinstance(model, Encoder | Text):
        return arrays_of(model)
    found = {name: array for name, array in arrays_of(model).items() if not name.startswith("stages.")}
    return found | {f"blocks.{i}.{name}": array for i, block in enumerate(unstacked(model)) for name, array in arrays_of(block).items()}


def torch_values(model: Any, call: Callable[[], Mapping[str, Any]]) -> Values:
    """Of all modules of a torch model, while `call` runs it, and what that returns; channels stand last, as they do here."""
    import torch

    values: Values = {}

    def keep(name: str, value: Any) -> None:
        if name not in values and (tensor := first_tensor(value)) is not None:
            values[name] = to_numpy(tensor).copy()  # a later module may write over it

    with hooked(model, keep, keep), torch.inference_mode():
        results = call()
    return values | {name: to_numpy(result) for name, result in results.items()}


def shaped(value: np.ndarray, ours: np.ndarray) -> np.ndarray | None:
    """An original's value in the shape of ours; None where it has no such form. Of several forms the one that is nearest to ours."""
    found = list(_forms(value, ours.shape))
    if len(found) < 2:
        return next(iter(found), None)
    return min(found, key=lambda form: float(np.nan_to_num(np.linalg.norm(form - ours), nan=np.inf)))


def _forms(value: np.ndarray, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """A value as it is, channels last, its places in a row, its batch in front, or one row of it where all are the same."""
    forms = [value]
    if value.ndim == len(shape) + 1:
        forms += [rows[0] for rows in (value, value.swapaxes(0, 1)) if (rows == rows[:1]).all()]  # one row, repeated for every image
    if value.ndim == 4:
        forms.append(value.transpose(0, 2, 3, 1))
    if value.ndim == 3:
        forms.append(value.swapaxes(0, 1))
    for form in forms:
        if form.shape == shape:
            yield form
        elif form.ndim == 4 and (form.shape[0], form.shape[1] * form.shape[2], form.shape[3]) == shape:
            yield form.reshape(shape)


def corresponding(ours: Values, theirs: Values, table: Mapping[str, str]) -> dict[str, str]:
    """The original's name for each of our values: by a table of modules (ours -> theirs), by equal names, or by order and shape."""
    own = {name: name.removesuffix(INPUT) for name in ours}
    named = {name: table.get(module, module) + INPUT * name.endswith(INPUT) for name, module in own.items()}
    found = {name: their for name, their in named.items() if their in theirs and any(True for _ in _forms(theirs[their], ours[name].shape))}
    if not table:
        taken = set(found.values())
        mine = [name for name in ours if name not in found and not name.endswith(INPUT)]
        other = [name for name in theirs if name not in taken and not name.endswith(INPUT)]
        shapes = [ours[name].shape for name in mine], [_channels_last(theirs[name].shape) for name in other]
        for block in SequenceMatcher(None, *shapes, autojunk=False).get_matching_blocks():
            found |= dict(zip(mine[block.a : block.a + block.size], other[block.b : block.b + block.size], strict=True))
    return {name: found[name] for name in ours if name in found}


def _channels_last(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else shape
