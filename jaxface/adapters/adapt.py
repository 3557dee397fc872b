"""Putting adapters into an encoder, or into both towers of a CLIP, and taking or merging them out again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer

from jaxface.adapters.low_rank import LowRank
from jaxface.adapters.methods import HEADS, METHODS, Group, get_method, require_taken
from jaxface.adapters.options import AdapterOptions, Keywords, make_options
from jaxface.adapters.places import is_adapted, linears
from jaxface.adapters.task_specific import TaskLowRank
from jaxface.errors import UserError
from jaxface.models.clip import Clip
from jaxface.models.encoder import Encoder, join_stages
from jaxface.models.text import Text
from jaxface.models.tree import shallow_copy
from jaxface.ranges import Known, Seed, checked

Model = TypeVar("Model", Encoder, Text, Clip)
"""What can be adapted: a tower, or both. Methods see a text tower as an encoder without a pool."""


@checked
def adapt(model: Model, method: Annotated[str, Known(METHODS)], *, seed: Seed = 0, **options: Unpack[Keywords]) -> Model:
    """A copy of an encoder adapted by a method: `adapt(encoder, "dora", rank=64)`. The frozen arrays are shared, not copied.

    Of a `Clip` both towers are adapted; `clip.text = adapt(clip.text, "lora")` adapts one of them.

    Raises UserError for an unknown method or option.
    """
    made, rngs = make_options(options), nnx.Rngs(seed)
    require_taken(method, made)
    return each_tower(lambda tower: adapt_with_groups(tower, method, made, rngs)[0], model)


def each_tower(change: Callable[[Any], Any], model: Model) -> Model:
    """What a function makes of a tower, or of both towers of a `Clip`, which is copied."""
    if not isinstance(model, nnx.Module):
        raise UserError(f"encoder {model!r}: expected Encoder, Text or Clip")
    if not isinstance(model, Clip):
        return change(model)
    clip = shallow_copy(model)
    clip.visual, clip.text = change(clip.visual), change(clip.text)
    return clip


def adapt_with_groups(encoder: Encoder, method: str, options: AdapterOptions, rngs: nnx.Rngs) -> tuple[Encoder, Sequence[Group]]:
    """The adapted copy, and the groups of parameters that train (the heads' first)."""
    encoder = shallow_copy(encoder)
    groups = get_method(method).adapt(encoder, options, rngs)
    return encoder, [HEADS, *groups]


@checked
def merge(model: Model) -> Model:
    """A copy whose adapted kernels are plain arrays again and whose blocks stand in one stage: it costs what the original costs.

    The adapted one is not changed: to go back is to keep it. What cannot be one kernel (an update per task) stays as it is, in a
    stage of its own. Merged kernels are float32; warns where the dtype that a tower computes in would round more than a fiftieth of the
    update away (in bfloat16 a small one): such an encoder is better left as it is, or told to compute in float32.
    """
    return each_tower(_merged_tower, model)


def unload(model: Model) -> Model:
    """A copy without its adapters: every kernel is the frozen one below them again, as the arrays that they share."""
    return each_tower(lambda tower: _replaced(tower, lambda kernel: kernel.base if is_adapted(kernel) else kernel), model)


def _merged_tower(tower: Any) -> Any:
    dtype = getattr(tower, "dtype", jnp.float32)
    kept, whole = 0.0, 0.0

    def plain(kernel: Any) -> Any:
        nonlocal kept, whole
        if isinstance(kernel, TaskLowRank):
            return kernel.settled()
        if not hasattr(kernel, "merge"):
            return kernel
        merged = _merged(kernel)
        if dtype != jnp.float32 and isinstance(kernel, LowRank) and not isinstance(merged, Tracer):  # which has no values to look at
            base = kernel.base[...].astype(jnp.float32)
            rounded = merged.astype(dtype).astype(jnp.float32) - base.astype(dtype).astype(jnp.float32)
            kept, whole = kept + jnp.sum(rounded * (merged - base)), whole + jnp.sum(jnp.square(merged - base))
        return nnx.Param(merged)

    tower = _replaced(tower, plain)
    if whole and not 0.98 <= kept / whole <= 1.02:
        text = f"merged for {jnp.dtype(dtype).name}, {float(100 * kept / whole):.0f} % of the update is left after rounding"
        warnings.warn(f"{text}: set encoder.dtype to float32, or do not merge", stacklevel=4)
    return tower


def _replaced(tower: Any, change: Callable[[Any], Any]) -> Any:
    """A copy with other kernels, its blocks in one stage where they are alike."""
    tower = shallow_copy(tower)
    for _, linear in linears(tower):
        linear.kernel = change(linear.kernel)
    if not any(is_adapted(linear.kernel) for _, linear in linears(tower.stages)):
        for part in (tower, *tower.stages):  # what a method put in is gone with the adapters
            for name in {"fusion", "branches"} & vars(part).keys():
                delattr(part, name)
        tower.stages = nnx.List([join_stages(tower)])
    return tower


@jax.jit
def _merged(kernel: Any) -> jax.Array:
    """One program, in place of one for each operation."""
    return kernel.merge()
