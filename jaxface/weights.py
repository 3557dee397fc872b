"""Models from checkpoints and back: any layout that `weights_convert` knows."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from jaxface.errors import UserError
from jaxface.models.blocks import REMAT
from jaxface.models.clip import Clip
from jaxface.models.encoder import Encoder, join_stages
from jaxface.models.tree import arrays_of, flatten
from jaxface.models.variants import EncoderConfig
from jaxface.ranges import Known, Like, PathLike, checked
from weights_convert.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from weights_convert.layouts import LAYOUTS, LOGIT_BIAS, LOGIT_SCALE
from weights_convert.surroundings import Classifier
from weights_convert.tensor_parts import NotFinite, contiguous, finite
from weights_convert.towers import Heads, Towers


def floating(dtype: Any) -> None:
    """Raises UserError for what is no dtype that a model computes in."""
    try:
        known = jnp.dtype(dtype) in (jnp.float32, jnp.bfloat16, jnp.float16)
    except TypeError:
        known = False
    if dtype is not None and not known:
        raise UserError("expected float32, bfloat16 or float16")


Dtype = Annotated[DTypeLike | None, Like(floating)]
"""Of a model; None is float32, or what stands where it is written."""


class EncoderKeywords(TypedDict, total=False):
    """The options of `load_encoder`."""

    dtype: Dtype
    residual: Dtype
    config: Towers | EncoderConfig | str | None
    heads: Heads | None
    averaged: bool | None
    classifier: Classifier
    remat: Annotated[str, Known(REMAT)]


@checked
def load_encoder(
    path: PathLike,
    *,
    dtype: Dtype = None,
    residual: Dtype = None,
    config: Towers | EncoderConfig | str | None = None,
    heads: Heads | None = None,
    averaged: bool | None = None,
    classifier: Classifier = "refuse",
    remat: Annotated[str, Known(REMAT)] = "none",
) -> Encoder:
    """A vision tower from a checkpoint in any layout. No random weights are made first.

    Args:
      path: a safetensors or torch file, the index of several, or a folder with them as Hugging Face's libraries write one.
      dtype: of its arrays and of its activations; None is float32, whatever the file has.
      residual: see `Encoder`; arrays that are no kernels have it, too. float32 beside bfloat16 is what torch.autocast computes.
      config: what the checkpoint must be; None reads it off the tensors.
      heads: head counts, for a shape that is none of the family's.
      averaged: whether to take the moving average (EMA) of a training checkpoint; None takes it if it is there, with a warning.
      classifier: whether to "drop" or "keep" a trained classifier that stands in the projection's place; else it is refused.
      remat: see `Encoder`.

    Raises UserError naming what is missing, too much or misshapen.
    """
    checkpoint = read_checkpoint(path, config=config, heads=heads, averaged=averaged, classifier=classifier)
    if averaged is None and checkpoint.file.taken:
        warnings.warn(f"{path}: {checkpoint.file.taken}; averaged=False or True says which", stacklevel=2)
    vision = checkpoint.towers.vision
    dtype, residual = jnp.dtype(dtype or jnp.float32), residual and jnp.dtype(residual)
    encoder = _fill(lambda: Encoder(vision, rngs=nnx.Rngs(0), remat=remat), checkpoint, "visual.", dtype, residual)
    encoder.dtype, encoder.residual = dtype, residual
    return encoder


@checked
def load_clip(
    path: PathLike,
    *,
    dtype: Dtype = None,
    residual: Dtype = None,
    config: Towers | str | None = None,
    heads: Heads | None = None,
) -> Clip:
    """Both towers from a checkpoint; see `load_encoder`: `residual` is of the vision tower. Raises UserError if it has no text tower."""
    checkpoint = read_checkpoint(path, config=config, heads=heads)
    vision, text = checkpoint.towers.vision, checkpoint.towers.text
    if text is None:
        raise UserError(f"{path}: holds a vision tower alone; expected a text tower beside it")
    dtype, residual = jnp.dtype(dtype or jnp.float32), residual and jnp.dtype(residual)
    clip = _fill(lambda: Clip(vision, text, rngs=nnx.Rngs(0)), checkpoint, "", dtype, residual)
    clip.visual.dtype, clip.visual.residual = dtype, residual
    return clip


@checked
def save_weights(model: Encoder | Clip, path: PathLike, *, layout: str = "jaxface", dtype: Dtype = None) -> None:
    """Writes an encoder or both towers as a checkpoint: every array of it, or nothing.

    Raises UserError for adapted kernels and kernels in fewer bits (`jaxface.merge` makes them plain), for a layout that has no place
    for the text tower, and if the file cannot be written.
    """
    clip = isinstance(model, Clip)
    towers: dict[str, Any] = {"visual.": model.visual, "text.": model.text} if clip else {"visual.": model}
    if clip and LAYOUTS.get(layout).text is None:
        raise UserError(f"layout {layout} has no place for a text tower: write clip.visual, or take another layout")
    arrays = {name: array for name, array in arrays_of(model).items() if clip and not name.startswith(tuple(towers))}
    for prefix, tower in towers.items():
        _require_plain(tower)
        arrays |= {prefix + name: array for name, array in arrays_of(tower).items() if not name.startswith("stages.")}
        arrays |= {f"{prefix}blocks.{name}": array for name, array in arrays_of(join_stages(tower)).items()}
    tensors: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        values = np.asarray(array)
        numbered = re.sub(r"^(\w+\.blocks)\.", r"\1.{i}.", name)
        tensors |= {numbered.format(i=i): part for i, part in enumerate(values)} if numbered != name else {name: values}
    write_checkpoint(path, Towers(towers["visual."].config, model.text.config if clip else None), tensors, layout=layout, dtype=dtype)


def _require_plain(tower: Any) -> None:
    """Raises UserError for a kernel that is no array."""
    for path, module in nnx.iter_modules(tower):
        kernel = getattr(module, "kernel", None)
        if isinstance(kernel, nnx.Module):
            name = ".".join(map(str, path))
            raise UserError(f"{name}: a kernel of kind {type(kernel).__name__} has no place in a checkpoint: write jaxface.merge(model)")


def _fill(make: Callable[[], Any], checkpoint: Checkpoint, prefix: str, dtype: Any, residual: Any) -> Any:
    """The module that `make` describes, with the checkpoint's tensors for arrays: what is multiplied in one dtype, the rest in another."""
    shapes, structure = flatten(nnx.eval_shape(make))

    def dtype_of(name: str) -> Any:
        return dtype if residual is None or name.startswith("text.") or name.endswith("kernel") else residual

    try:
        arrays = {name: _array(prefix + name, tuple(leaf.shape), checkpoint, dtype_of(name)) for name, leaf in shapes.items()}
    except NotFinite:
        raise checkpoint.not_finite() from None
    return structure.build(arrays)


def _array(name: str, shape: tuple[int, ...], checkpoint: Checkpoint, dtype: Any) -> jax.Array:
    """One array of the module: a tensor, or a stack of the blocks'."""
    pattern = re.sub(r"\.stages\.0\.", ".blocks.{i}.", name)
    result = np.empty(
        shape, np.float32 if name in (LOGIT_SCALE, LOGIT_BIAS) else dtype
    )  # a logarithm: rounded to bf16 the scale is 1 % off
    targets = {pattern.format(i=i): result[i] for i in range(shape[0])} if pattern != name else {name: result}
    for source, target in targets.items():
        values = contiguous(checkpoint.tensors[source])
        if not finite(values):
            raise NotFinite(source)
        target[...] = values.reshape(target.shape)
    checkpoint.file.release()
    return jax.device_put(result)
