"""The ways to adapt an encoder, one entry each, as the thesis has them (sections 3.3 to 3.6).

A method edits an encoder (wraps kernels, cuts stages) and names the parameters that train. Everything that it does not name stays
frozen. Another method is a function registered from anywhere:

    @register_method("bitfit")
    def bitfit(encoder, options, rngs):
        return [Group(r"\\.bias$", rate="backbone")]
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxface.adapters.options import AdapterOptions, block_numbers, target_pattern
from jaxface.adapters.places import as_base, cut_out, is_adapted, linears, wrap
from jaxface.adapters.task_specific import FUSIONS, TaskLowRank, TaskPools
from jaxface.errors import UserError
from jaxface.models.encoder import Encoder, make_pool, split_stages
from jaxface.models.tree import shallow_copy
from jaxface.registry import Registry, require_known


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
      batch_norm: see `Method`.
      options: see `Method`. One that is not named is refused wherever somebody gives it for this method.
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
        encoder.pool = nnx.data(make_pool(encoder.config, rngs))


@register_method("ft4")
def last_blocks(encoder: Encoder, options: AdapterOptions, rngs: nnx.Rngs) -> Sequence[Group]:
    """FT4: the last four blocks, all where there are fewer, and, where there is one, the attention pool."""
    split_stages(encoder, max(encoder.config.depth - 4, 0))
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


@register_method("mtlora", options=("rank", "dropout", "blocks", "num_tasks", "shared_set", "task_dora", "fusion", *OF_NORMS))
def mtlora(encoder: Encoder, options: AdapterOptions, rngs: nnx.Rngs) -> Sequence[Group]:
    """MTLoRA: DoRA shared by the tasks in all blocks but the last, there and in the pool one LoRA and one probe per task.

    With `blocks` the task-specific ones stand anywhere in the depth; from the first on each task has its own stream. With `fusion`
    (multi-scale MTLoRA) the stream stays one: such a block gives each task its tokens, and by one more update, MTLoRA's shared one, what
    goes on; tokens of all these depths and of the last block are fused into one set per task, which is pooled. `task_dora` is TS-DoRA.

    Of width D, MLP H, rank r, T tasks and S depths fused: a shared block has r (8 D + 2 H) + 5 D + H, a task-specific one and the pool
    T r (10 D + 2 H), before the last block (T + 1) r (10 D + 2 H), each update 5 D + H more with `task_dora`; probes T D in place of D;
    attention fuses with T (2 D + S), an MLP with T (r (S D + D + 1) + D). For PE-Core-L (1024, 4096), r 64 and three tasks that is, with
    heads, batch norms and log-variances (3,173,397), 34,583,573 that train; 34,638,869 with `task_dora`; 45,572,129 with `fusion`
    attention in the four quarters, 46,552,277 with an MLP.
    """
    own = own_blocks(encoder, options)
    fused = options.fusion != "none"
    last, parts = encoder.config.depth - 1, []
    if fused and not isinstance(encoder, Encoder):
        raise UserError(f"adapter fusion {options.fusion}: a text tower has one feature, of its last block: leave it out")
    for stage, number in cut_out(encoder, lambda number: (number if fused else 0) if number in own else None, own):
        if number is None:
            for _, linear in linears(stage):
                wrap(linear, options, rngs, dora=True)
        else:
            if fused and number != last:
                stage.branches = True
            parts.append(stage)
    parts += [] if encoder.pool is None else [encoder.pool]
    rules = {"dropout": options.dropout, "dora": options.task_dora, "detach_norm": options.detach_norm, "rngs": rngs}
    for part in parts:
        updates = options.num_tasks + getattr(part, "branches", False)
        shared = options.shared_set and updates == options.num_tasks
        for name, linear in linears(part):
            groups = {"attn.qkv": 3, "kv": 2}.get(name, 1)
            linear.kernel = TaskLowRank(as_base(linear.kernel), options.rank, updates, groups=groups, shared_set=shared, **rules)
    groups = list(adapter_groups(encoder, options))
    if fused:
        depths = len(own | {last})
        encoder.fusion = FUSIONS[options.fusion](encoder.config.width, depths, options.num_tasks, options.rank, rngs)
        groups.append(Group(r"^fusion\.", rate="pool"))
    if encoder.pool is not None:
        encoder.pool.probe = nnx.Param(jnp.tile(encoder.pool.probe[...], (options.num_tasks, 1, 1, 1)))
        groups.append(Group(r"^pool\.probe$", rate="pool"))
    return groups


def own_blocks(encoder: Encoder, options: AdapterOptions) -> set[int]:
    """The numbers of MTLoRA's task-specific blocks: those named, or the last, or where depths are fused the last of each quarter."""
    depth = encoder.config.depth
    quarters = {max(round(depth * quarter / 4) - 1, 0) for quarter in range(1, 5)}
    return block_numbers(options.blocks) or (quarters if options.fusion != "none" else {depth - 1})


def adapter_groups(encoder: Encoder, options: AdapterOptions) -> Sequence[Group]:
    """LoRA+: B learns faster than A (Hayou et al. 2024); magnitudes learn as A does."""
    slow = r"\.kernel\.(shared_)?a$|\.kernel\.magnitude$" if options.train_magnitude else r"\.kernel\.(shared_)?a$"
    fast = r"\.kernel\.(shared_)?b$"
    groups = []
    for part, rate in (("pool", "pool"), ("projection", "pool"), ("stages", "backbone")):
        if any(is_adapted(linear.kernel) for _, linear in linears(getattr(encoder, part))):
            groups += [Group(rf"^{part}(\..*)?({slow})", rate=rate), Group(rf"^{part}(\..*)?{fast}", rate=rate, plus=True)]
    return groups


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
