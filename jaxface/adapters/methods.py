"""The ways to adapt an encoder, one entry each, as the thesis has them (sections 3.3 to 3.6).

A method edits an encoder (wraps kernels, cuts stages) and names the parameters that train. Everything that it does not name stays
frozen. Another method is a function registered from anywhere:

    @register_method("bitfit")
    def bitfit(encoder, options, rngs):
        return [Group(r"\\.bias$", rate="backbone")]
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypedDict, TypeVar, Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from jaxface.adapters.low_rank import GAUSSIAN, INITS, Frozen, LowRank
from jaxface.adapters.task_specific import TaskLowRank, TaskPools
from jaxface.errors import UserError
from jaxface.models.clip import Clip
from jaxface.models.encoder import Encoder, join_stages, split_stages
from jaxface.models.pool import AttentionPool
from jaxface.models.text import Text
from jaxface.ranges import Known, Like, Range, Seed, checked, ranged
from jaxface.registry import Registry, require_known

Model = TypeVar("Model", Encoder, Text, Clip)
"""What can be adapted: a tower, or both. Methods see a text tower as an encoder without a pool."""
Rank = Annotated[int, Range(1, 4096)]
"""Of a low-rank update."""


def block_numbers(blocks: str) -> set[int]:
    """`0-2,5` -> {0, 1, 2, 5}. Raises UserError for anything else."""
    numbers: set[int] = set()
    for part in filter(None, blocks.replace(" ", "").split(",")):
        if not (match := re.fullmatch(r"(\d+)(?:-(\d+))?", part)) or int(match[2] or match[1]) < int(match[1]):
            raise UserError(f"blocks {blocks!r}: expected numbers and ranges from 0, as in '0-11,23'")
        numbers |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return numbers


def target_pattern(targets: str) -> re.Pattern[str]:
    """The regular expression. Raises UserError if it is none."""
    try:
        return re.compile(targets)
    except re.error as error:
        raise UserError(f"targets {targets!r}: expected a regular expression: {error}") from None


@ranged("adapter ")
class AdapterOptions:
    """What a method may be told; the defaults are the thesis's (section 3.6).

    Attributes:
      rank: r of the low-rank updates.
      scaling: factor of the update; the thesis uses none. PEFT's is `lora_alpha / rank`.
      rslora: multiply by the root of the rank too, as rsLoRA's `lora_alpha / sqrt(rank)` does (Kalajdzievski 2023).
      init: how an update starts: gaussian (A random, B zero), pissa or olora (see `jaxface.adapters.low_rank.INITS`).
      split_qkv: give q, k and v an adapter each instead of one for the fused kernel.
      pool_inputs: adapt the attention pool's q, k and v kernels too.
      detach_norm: treat DoRA's norm as a constant in the backward pass.
      dropout: share of an adapter's inputs that each training step leaves out; the frozen kernels see all of them.
      train_magnitude: whether DoRA's magnitudes train.
      targets: which linears LoRA and DoRA adapt, as one regular expression that their whole names match (`blocks.3.attn.qkv`,
        `pool.kv`, `projection`; the parts of a block are attn.qkv, attn.out, mlp.fc and mlp.proj); empty for the usual ones.
      blocks: the adapted blocks, as numbers and ranges from 0 (`0-11,23`), empty for all; in MTLoRA the
        task-specific ones, empty for the last.
      num_tasks: updates of a task-specific kernel; a run fills in the number of its tasks.
      shared_set: give task-specific kernels MTLoRA's shared update too, which gets no gradient where nothing shared follows.
    """

    rank: Rank = 64
    scaling: Annotated[float, Range(above=0, high=1e4)] = 1.0
    rslora: bool = False
    init: Annotated[str, Known(INITS, GAUSSIAN)] = GAUSSIAN
    split_qkv: bool = False
    pool_inputs: bool = False
    detach_norm: bool = True
    dropout: Annotated[float, Range(0, below=1)] = 0.0
    train_magnitude: bool = True
    targets: Annotated[str, Like(target_pattern, "a regular expression")] = ""
    blocks: Annotated[str, Like(block_numbers, "as in 0-11,23")] = ""
    num_tasks: Annotated[int, Range(1, 1000)] = 1
    shared_set: bool = False

    @property
    def factor(self) -> float:
        """What A B is multiplied by."""
        return self.scaling * (math.sqrt(self.rank) if self.rslora else 1.0)


@dataclass(frozen=True)
class Group:
    """Parameters that train together.

    Attributes:
      pattern: regular expression searched in a parameter's path (`stages.0.attn.qkv.kernel.a`).
      rate: which learning rate of the configuration they take: backbone, pool or head.
      plus: whether LoRA+ multiplies that rate by its ratio.
    """

    pattern: str
    rate: str
    plus: bool = False

    @property
    def name(self) -> str:
        return self.rate + "_plus" * self.plus


Adapt = Callable[[Encoder, AdapterOptions, nnx.Rngs], Sequence[Group]]


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
      batch_norm: whether the heads behind it normalise the features first (thesis: all but LP).
      options: the fields of `AdapterOptions` that it takes.
    """

    name: str
    adapt: Adapt
    batch_norm: bool = True
    options: tuple[str, ...] = ()


METHODS: Registry[Method] = Registry("method")
get_method = METHODS.get


def register_method(name: str, *, batch_norm: bool = True, options: Sequence[str] = ()) -> Callable[[Adapt], Adapt]:
    """Decorator that makes a method known by its name.

    Args:
      batch_norm, options: see `Method`. An option that is not named is refused wherever somebody gives it for this method.
    """
    require_known("adapter option", options, AdapterOptions.__dataclass_fields__)

    def add(adapt: Adapt) -> Adapt:
        METHODS.add(name, Method(name, adapt, batch_norm, tuple(options)))
        return adapt

    return add


def require_taken(method: str, options: AdapterOptions) -> None:
    """Raises UserError for an option that is not as usual and that the method does not take."""
    taken, usual = get_method(method).options, AdapterOptions()
    for name in AdapterOptions.__dataclass_fields__:
        if name not in taken and getattr(options, name) != getattr(usual, name):
            takes = f"takes {', '.join(taken)}" if taken else "takes no options"
            raise UserError(f"adapter {name} {getattr(options, name)}: method {method} does not take it; it {takes}")


def options_for(method: str, options: AdapterOptions) -> AdapterOptions:
    """Those of the options that the method takes, the others as usual."""
    return AdapterOptions(**{name: getattr(options, name) for name in get_method(method).options})


LOW_RANK = ("rank", "scaling", "rslora", "init", "targets", "split_qkv", "pool_inputs", "dropout", "blocks")
"""What LoRA takes."""
OF_NORMS = ("detach_norm", "train_magnitude")
"""What DoRA takes beside it."""


HEADS = Group(r"^heads\.", rate="head")
"""The heads train in every method."""
POOL = Group(r"^pool\.", rate="pool")


def pool_group(encoder: Encoder) -> Sequence[Group]:
    """The attention pool's group, where there is a pool."""
    return [] if encoder.pool is None else [POOL]


@register_method("lp", batch_norm=False)
def linear_probe(encoder: Encoder, options: AdapterOptions, rngs: nnx.Rngs) -> Sequence[Group]:
    """LP: the heads alone."""
    return []


@register_method("ap")
def attention_probe(encoder: Encoder, options: AdapterOptions, rngs: nnx.Rngs) -> Sequence[Group]:
    """AP: the attention pool; a new one on an encoder that has none, as attentive probing has it (Bardes et al. 2024, section 4.1)."""
    require_pool(encoder, rngs)
    return [POOL]


@register_method("ap_per_task", options=("num_tasks",))
def attention_probe_per_task(encoder: Encoder, options: AdapterOptions, rngs: nnx.Rngs) -> Sequence[Group]:
    """AP with a pool for each task: what several single-task APs are together."""
    require_pool(encoder, rngs)
    pools: Any = TaskPools([shallow_copy(encoder.pool) for _ in range(options.num_tasks)])
    encoder.pool = pools
    return [POOL]


def require_pool(encoder: Encoder, rngs: nnx.Rngs) -> None:
    """Gives an encoder without an attention pool a new one. Raises UserError for a text tower."""
    if not isinstance(encoder, Encoder):
        raise UserError("this method trains the attention pool, which a text tower does not have: adapt the vision tower alone")
    if encoder.pool is None:
        encoder.config = replace(encoder.config, pool=True)
        encoder.pool = nnx.data(AttentionPool(encoder.config.width, encoder.config.pool_heads, rngs=rngs))


@register_method("ft4")
def last_blocks(encoder: Encoder, options: AdapterOptions, rngs: nnx.Rngs) -> Sequence[Group]:
    """FT4: the last four blocks and, where there is one, the attention pool."""
    split_stages(encoder, -4)
    return [Group(rf"^stages\.{len(encoder.stages) - 1}\.", rate="backbone"), *pool_group(encoder)]


@register_method("full")
def full(encoder: Encoder, options: AdapterOptions, rngs: nnx.Rngs) -> Sequence[Group]:
    """Everything trains."""
    return [*pool_group(encoder), Group(r"^(?!heads\.)", rate="backbone")]


@register_method("lora", options=LOW_RANK)
def lora(encoder: Encoder, options: AdapterOptions, rngs: nnx.Rngs) -> Sequence[Group]:
    """LoRA on every linear of the blocks and of the pool, but for the pool's inputs."""
    return low_rank(encoder, options, rngs, dora=False)


@register_method("dora", options=(*LOW_RANK, *OF_NORMS))
def dora(encoder: Encoder, options: AdapterOptions, rngs: nnx.Rngs) -> Sequence[Group]:
    """DoRA on the same kernels."""
    return low_rank(encoder, options, rngs, dora=True)


def low_rank(encoder: Encoder, options: AdapterOptions, rngs: nnx.Rngs, *, dora: bool) -> Sequence[Group]:
    """Wraps every linear of the blocks, and of the pool but for its inputs, in `LowRank`; or those that `targets` names.

    Raises UserError where that is none.
    """
    numbers = block_numbers(options.blocks)
    pattern = target_pattern(options.targets) if options.targets else None
    groups = {"attn.qkv": 3, "kv": 2} if options.split_qkv else {}
    inputs = () if options.pool_inputs else ("pool.q", "pool.kv")

    def wanted(name: str) -> bool:
        return pattern.fullmatch(name) is not None if pattern else name != "projection" and name not in inputs

    def in_block(number: int) -> frozenset[str]:
        names = [name for name, _ in linears(encoder.stages[0])]
        return frozenset(name for name in names if (not numbers or number in numbers) and wanted(f"blocks.{number}.{name}"))

    places = [
        *((name, linear) for stage, names in cut_out(encoder, in_block, numbers) for name, linear in linears(stage) if name in names),
        *((name, linear) for name, linear in linears(encoder.pool) if wanted(f"pool.{name}")),
        *([("projection", encoder.projection)] if encoder.projection is not None and wanted("projection") else []),
    ]
    if not places:
        raise UserError(f"targets {options.targets!r}: no linear has that name; they are as blocks.0.attn.qkv, pool.kv, projection")
    for name, linear in places:
        wrap(linear, options, rngs, dora=dora, groups=groups.get(name, 1))
    return adapter_groups(encoder, options)


@register_method("mtlora", options=("rank", "dropout", "blocks", "num_tasks", "shared_set", *OF_NORMS))
def mtlora(encoder: Encoder, options: AdapterOptions, rngs: nnx.Rngs) -> Sequence[Group]:
    """MTLoRA: DoRA shared by the tasks in all blocks but the last, there and in the pool one plain LoRA and one probe per task.

    With `blocks` the task-specific ones stand anywhere in the depth (multi-scale MTLoRA); from the first on each task has its own stream.
    """
    parts = []
    own = block_numbers(options.blocks) or {encoder.config.depth - 1}
    for stage, specific in cut_out(encoder, lambda number: number in own, own):
        if specific:
            parts.append(stage)
        else:
            for _, linear in linears(stage):
                wrap(linear, options, rngs, dora=True)
    if encoder.pool is not None:
        parts.append(encoder.pool)
    for part in parts:
        for name, linear in linears(part):
            groups = {"attn.qkv": 3, "kv": 2}.get(name, 1)
            rules = {"shared_set": options.shared_set, "dropout": options.dropout}
            linear.kernel = TaskLowRank(as_base(linear.kernel), options.rank, options.num_tasks, groups=groups, **rules, rngs=rngs)
    groups = list(adapter_groups(encoder, options))
    if encoder.pool is not None:
        encoder.pool.probe = nnx.Param(jnp.tile(encoder.pool.probe[...], (options.num_tasks, 1, 1, 1)))
        groups.append(Group(r"^pool\.probe$", rate="pool"))
    return groups


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


def adapter_groups(encoder: Encoder, options: AdapterOptions) -> Sequence[Group]:
    """LoRA+: B learns faster than A (Hayou et al. 2024); magnitudes learn as A does."""
    slow = r"\.kernel\.(shared_)?a$|\.kernel\.magnitude$" if options.train_magnitude else r"\.kernel\.(shared_)?a$"
    fast = r"\.kernel\.(shared_)?b$"
    groups = []
    for part, rate in (("pool", "pool"), ("projection", "pool"), ("stages", "backbone")):
        if any(is_adapted(linear.kernel) for _, linear in linears(getattr(encoder, part))):
            groups += [Group(rf"^{part}(\..*)?({slow})", rate=rate), Group(rf"^{part}(\..*)?{fast}", rate=rate, plus=True)]
    return groups


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


class Keywords(TypedDict, total=False):
    """The fields of `AdapterOptions` as keywords."""

    rank: int
    scaling: float
    rslora: bool
    init: str
    split_qkv: bool
    pool_inputs: bool
    detach_norm: bool
    dropout: float
    train_magnitude: bool
    targets: str
    blocks: str
    num_tasks: int
    shared_set: bool


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


def make_options(options: Mapping[str, Any]) -> AdapterOptions:
    """AdapterOptions from keywords. Raises UserError that names the unknown one."""
    require_known("adapter option", options, AdapterOptions.__dataclass_fields__)
    return replace(AdapterOptions(), **options)


def adapt_with_groups(encoder: Encoder, method: str, options: AdapterOptions, rngs: nnx.Rngs) -> tuple[Encoder, Sequence[Group]]:
    """The adapted copy, and the groups of parameters that train (the heads' first)."""
    encoder = shallow_copy(encoder)
    groups = get_method(method).adapt(encoder, options, rngs)
    return encoder, [HEADS, *groups]


def shallow_copy(module: Any) -> Any:
    """The same module tree around the same arrays."""
    return jax.tree.map(lambda leaf: leaf, module)


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
        if not hasattr(kernel, "merge"):
            return kernel
        merged = _merged(kernel)
        if dtype != jnp.float32 and isinstance(kernel, LowRank):
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
        tower.stages = nnx.List([join_stages(tower)])
    return tower


@jax.jit
def _merged(kernel: Any) -> jax.Array:
    """One program, in place of one for each operation."""
    return kernel.merge()


def group_of(path: Sequence[Any], groups: Sequence[Group]) -> Group | None:
    """The first group whose pattern is found in a parameter's path (without a leading `encoder.`), or None if it is frozen."""
    name = ".".join(map(str, path)).removeprefix("encoder.")
    return next((group for group in groups if re.search(group.pattern, name)), None)


def group_parameters(names: Iterable[str], groups: Sequence[Group]) -> dict[str, Group]:
    """The group of every parameter that trains. Raises UserError for a group that no parameter belongs to."""
    found = {name: group for name in names if (group := group_of(name.split("."), groups)) is not None}
    unused = [group.pattern for group in groups if group not in found.values()]
    if unused:
        raise UserError(f"no parameter matches {unused[0]!r}, which the method says to train")
    return found
