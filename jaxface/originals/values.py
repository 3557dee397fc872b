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

Values = dict[str, np.ndarray]
"""What a module gives, under its dotted path, and what it was given, under the path with `INPUT` behind it."""
INPUT = ".input"
OUTPUT = "output"
"""What the whole model gives."""


@contextmanager
def recorded(modules: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What NNX modules take and give while the context lasts, by their names: first arguments and results; of several calls the first."""
    names = {id(module): name for name, module in modules.items()}
    values: dict[str, Any] = {}

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def wrapper(self: Any, *args: Any, **options: Any) -> Any:
            name = names.get(id(self))
            if name is not None and args and isinstance(args[0], jax.Array):
                values.setdefault(name + INPUT, args[0])
            result = call(self, *args, **options)
            if name is not None and isinstance(result, jax.Array):
                values.setdefault(name, result)
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
        values = _passes(model)(model, *inputs)
        order[:] = values
        return list(values.values())

    with jax.default_matmul_precision("highest"):
        results = run(model, *inputs)
    return {name: np.asarray(value) for name, value in zip(order, results, strict=True)}


def _passes(model: Any) -> Callable[..., dict[str, Any]]:
    return next((run for kind, run in {Clip: _clip_pass, Encoder: _encoder_pass}.items() if isinstance(model, kind)), _plain_pass)


def _plain_pass(model: Any, *inputs: jax.Array) -> dict[str, Any]:
    with recorded(_named(model)) as values:
        result = model(*inputs)
    return values | ({OUTPUT: result} if isinstance(result, jax.Array) else {})


def _encoder_pass(encoder: Encoder, images: jax.Array) -> dict[str, Any]:
    blocks = unstacked(encoder)
    beside = {name: module for name, module in _named(encoder).items() if not name.startswith("stages.")}
    with recorded(beside | _of_blocks(blocks)) as values:
        x, angles = encoder.embed(images)
        values["embedding"] = x
        for block in blocks:
            x = block(x, angles)
        values["tokens"] = x if encoder.norm_post is None else encoder.norm_post(x)
        values["features"] = encoder.pooled(values["tokens"])
    return values


def _clip_pass(clip: Clip, images: jax.Array, ids: jax.Array) -> dict[str, Any]:
    values = _encoder_pass(clip.visual, images)
    text, blocks = clip.text, unstacked(clip.text)
    with recorded(_of_blocks(blocks)) as own:
        x = text.embed(ids)
        for block in blocks:
            x = block(x, None, text.config.causal)
    features = clip.encode_text(ids)
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


def torch_values(model: Any, call: Callable[[], Any]) -> Values:
    """Of all modules of a torch model, while `call` runs it; channels stand last, as they do here."""
    import torch

    values: dict[str, Any] = {}

    def keep(name: str, value: Any) -> None:
        value = value[0] if isinstance(value, tuple) and value else value
        if isinstance(value, torch.Tensor) and value.is_floating_point() and name not in values:
            values[name] = value.detach().to(torch.float64 if value.dtype == torch.float64 else torch.float32).numpy()

    hooks = []
    for name, module in model.named_modules():
        if name:
            hooks.append(module.register_forward_pre_hook(lambda _, args, name=name: keep(name + INPUT, args)))
            hooks.append(module.register_forward_hook(lambda _, __, result, name=name: keep(name, result)))
    try:
        with torch.inference_mode():
            keep(OUTPUT, call())
    finally:
        for hook in hooks:
            hook.remove()
    return values


def shaped(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """An original's value in our shape: as it is, channels last, its places in a row, or its batch in front; else None."""
    forms = [value]
    if value.ndim == 4:
        forms.append(value.transpose(0, 2, 3, 1))
    if value.ndim == 3:
        forms.append(value.swapaxes(0, 1))
    for form in forms:
        if form.shape == shape:
            return form
        if form.ndim == 4 and (form.shape[0], form.shape[1] * form.shape[2], form.shape[3]) == shape:
            return form.reshape(shape)
    return None


def corresponding(ours: Values, theirs: Values, table: Mapping[str, str]) -> dict[str, str]:
    """The original's name for each of our values: by a table of modules (ours -> theirs), by equal names, or by order and shape."""
    own = {name: name.removesuffix(INPUT) for name in ours}
    named = {name: table.get(module, module) + INPUT * name.endswith(INPUT) for name, module in own.items()}
    found = {name: their for name, their in named.items() if their in theirs and shaped(theirs[their], ours[name].shape) is not None}
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
