"""Where adapters stand: the linears of an encoder, and the stages that its blocks are cut into for them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

from flax import nnx

from jaxface.adapters.low_rank import Frozen, LowRank
from jaxface.adapters.options import AdapterOptions
from jaxface.errors import UserError
from jaxface.models.encoder import Encoder, split_stages


def linears(module: nnx.Module | None) -> Iterator[tuple[str, Any]]:
    """The modules below `module` that have a kernel, with their dotted paths, in a fixed order."""
    for path, child in () if module is None else nnx.iter_modules(module):
        if hasattr(child, "kernel"):
            yield ".".join(map(str, path)), child


def wrap(linear: Any, options: AdapterOptions, rngs: nnx.Rngs, *, dora: bool, groups: int = 1) -> None:
    """Puts a `LowRank` where the linear's kernel stood."""
    rules = {"scaling": options.factor, "detach_norm": options.detach_norm, "dropout": options.dropout, "init": options.init}
    linear.kernel = LowRank(as_base(linear.kernel), options.rank, dora=dora, groups=groups, **rules, rngs=rngs)


def is_adapted(kernel: Any) -> bool:
    """Whether a kernel is neither a plain parameter nor one in fewer bits."""
    return isinstance(kernel, nnx.Module) and not isinstance(kernel, Frozen)


def as_base(kernel: Any) -> Any:
    """What stands below an adapter: the array of a plain kernel, or the kernel in fewer bits itself.

    Raises UserError if the kernel is adapted already.
    """
    if is_adapted(kernel):
        raise UserError(f"the encoder is adapted already ({type(kernel).__name__}): merge it first, or take the adapters off (unload)")
    return kernel if isinstance(kernel, Frozen) else kernel[...]


def cut_out(encoder: Encoder, what: Callable[[int], Hashable], named: Iterable[int] = ()) -> Iterator[tuple[Any, Any]]:
    """Cuts the stages where `what` of a block's number changes: each stage, and what its blocks have.

    Raises UserError for one of the `named` numbers past the depth.
    """
    depth = encoder.config.depth
    if max(named, default=0) >= depth:
        raise UserError(f"block {max(named)}: the encoder has blocks 0 to {depth - 1}")
    each = [what(number) for number in range(depth)]
    starts = [i for i in range(1, depth) if each[i] != each[i - 1]]
    split_stages(encoder, *starts)
    return ((stage, each[start]) for stage, start in zip(encoder.stages, [0, *starts], strict=True))
