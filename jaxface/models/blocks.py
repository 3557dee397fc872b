"""The transformer blocks of both towers, and how stacks of them run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import DTypeLike

from jaxface.kernels.attention import AUTO, TURNED, attention, attention_weights
from jaxface.kernels.matmul import PRODUCT
from jaxface.kernels.normalize import EPSILON
from jaxface.kernels.plain import is_plain
from jaxface.kernels.platform import platform
from jaxface.models.layers import MLPS, KeylessLinear, LayerNorm, Linear
from jaxface.models.pool import join_heads, split_heads
from jaxface.registry import Registry


class Attention(nnx.Module):
    """Multi-head self-attention with one fused kernel for queries, keys and values."""

    def __init__(self, width: int, heads: int, *, qkv_bias: str = "all", halves: bool = False, rngs: nnx.Rngs) -> None:
        self.heads, self.halves = heads, halves
        self.attention = AUTO
        keyless = qkv_bias == "no key"
        self.qkv = KeylessLinear(width, rngs=rngs) if keyless else Linear(width, 3 * width, bias=qkv_bias == "all", rngs=rngs)
        self.out = Linear(width, width, rngs=rngs)

    def __call__(self, x: jax.Array, angles: jax.Array | None, causal: bool = False) -> jax.Array:
        """[..., N, D] -> [..., N, D]"""
        q, k, v = self._parts(x, angles)
        return self.out(join_heads(attention(q, k, v, angles=angles, causal=causal, kernel=self.attention)))

    def weights(self, x: jax.Array, angles: jax.Array | None) -> jax.Array:
        """[..., N, D] -> how much every token takes from every other, [..., H, N, N]; rows sum to 1."""
        q, k, _ = self._parts(x, angles)
        return attention_weights(q, k, angles=angles)

    def _parts(self, x: jax.Array, angles: jax.Array | None) -> list[jax.Array]:
        """Queries, keys and values [..., H, N, d], as kernels want them."""
        q, k, v = (split_heads(part, self.heads) for part in jnp.split(self.qkv(x), 3, -1))
        if self.halves and angles is not None:  # kernels turn neighbours
            q, k = (jnp.stack(jnp.split(part, 2, -1), -1).reshape(part.shape) for part in (q, k))
        return [q, k, v]


class Block(nnx.Module):
    """A pre-norm transformer block, its residual branches scaled per channel where the variant has LayerScale.

    Attributes:
      branches: whether its result is several, [T + 1, ..., N, D], of which the last goes on to the next block alone.
    """

    branches = False

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        layer_scale: bool = False,
        qkv_bias: str = "all",
        halves: bool = False,
        activation: str = "gelu",
        gate: str = "none",
        epsilon: float = EPSILON,
        rngs: nnx.Rngs,
    ) -> None:
        self.norm1 = LayerNorm(width, epsilon)
        self.attn = Attention(width, heads, qkv_bias=qkv_bias, halves=halves, rngs=rngs)
        self.norm2 = LayerNorm(width, epsilon)
        self.mlp = MLPS[gate](width, mlp_width, activation, rngs=rngs)
        self.scale1 = nnx.Param(jnp.full(width, 0.1, jnp.float32)) if layer_scale else None
        self.scale2 = nnx.Param(jnp.full(width, 0.1, jnp.float32)) if layer_scale else None

    def __call__(self, x: jax.Array, angles: jax.Array | None, causal: bool = False) -> jax.Array:
        """[..., N, D] -> [..., N, D]"""
        x = checkpoint_name(_added(x, self.attn(self.norm1(x), angles, causal), self.scale1), SUM)
        return _added(x, self.mlp(self.norm2(x)), self.scale2)


def _added(x: jax.Array, branch: jax.Array, scale: nnx.Param | None) -> jax.Array:
    """x with a branch added, in x's dtype."""
    branch = branch.astype(x.dtype)
    return x + (branch if scale is None else branch * scale[...].astype(x.dtype))


SUM = "sum"
"""The name of a block's input and attention's result together."""
BLOCK = "block"
"""The name under which a compiled program's operations say that they are a block's."""


def _products(block: Block) -> Callable[..., Any]:
    """Keeps what is named a product, and both results of cuDNN's attention, which nothing names: they spare it a second run.

    In the place of the product that q, k and v are cut from it keeps these as attention reads them, and in the place of attention's last
    product the sum that it goes into, unless those products' own backward passes ask for them.
    """
    instead = {TURNED: block.attn.qkv, SUM: block.attn.out}
    names = [name for name, linear in instead.items() if not getattr(linear.kernel, "keeps_result", False)]
    named = jax.checkpoint_policies.save_only_these_names(PRODUCT, *names)
    return lambda primitive, *arrays, **options: (
        primitive.name.startswith("dot_product_attention_fwd") or named(primitive, *arrays, **options)
    )


REMAT: Registry[Callable[[Block], Callable[..., Any] | None]] = Registry(
    "remat",
    {
        "none": lambda block: None,
        "products": _products,
        "full": lambda block: jax.checkpoint_policies.nothing_saveable,
    },
)
"""What a block keeps for its backward pass: all that autodiff asks for, the results of matrix products and attention, or its input alone.

The products are the only results that cost much to form again; keeping all else takes twice the memory, and as long to write and read."""


def _scanned(body: Any, keep: Any, x: Any, blocks: Block) -> tuple[Any, Any]:
    """One program for all blocks, run once for each."""
    return jax.lax.scan(keep(body, prevent_cse=False), x, blocks)


def _unrolled(body: Any, keep: Any, x: Any, blocks: Block) -> tuple[Any, Any]:
    """A program for each block: what a block keeps stays where it was written, and is not copied into arrays of all blocks."""
    leaves, tree = jax.tree.flatten(blocks)
    # arrays in fewer bits are frozen: a block cuts its own from them, in each pass anew; the gradients of the others are joined at once
    cut = [jax.lax.split(leaf, [1] * len(leaf)) if leaf.dtype == jnp.float32 else leaf for leaf in leaves]

    def one(x: Any, parts: list[Any], number: int) -> tuple[Any, Any]:
        own = [part[number] if leaf.shape == part.shape else part[0] for part, leaf in zip(parts, leaves, strict=True)]
        return body(x, jax.tree.unflatten(tree, own))

    every: list[Any] = []
    for number in range(len(leaves[0])):
        x = with_layout_constraint(x, Layout(tuple(range(x.ndim))))  # else the compiler lays tokens out channel by channel
        parts = [part[number] if isinstance(part, (list, tuple)) else part for part in cut]
        x, own = keep(partial(one, number=number))(x, parts)
        every.append(own)
    return x, jax.tree.map(lambda *states: jnp.stack(states), *every)


LOOPS: Registry[Any] = Registry("loop", {"scan": _scanned, "unrolled": _unrolled})
"""How blocks come one after another."""


def run_blocks(
    blocks: Block,
    x: jax.Array,
    angles: jax.Array | None,
    causal: bool = False,
    remat: str = "none",
    every: bool = False,
    loop: str = "scan",
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Runs blocks stacked along a leading axis of every leaf, one after another.

    Args:
      dtype: what their branches compute in, or None for x's.

    Returns:
      the last block's result [..., N, D], and with `every` each block's [depth, ..., N, D], else None.
    """
    return _run_blocks(blocks, x, angles, causal, remat, every, loop, jnp.dtype(dtype or x.dtype), (is_plain(), platform()))


@partial(jax.jit, static_argnames=("causal", "remat", "every", "loop", "dtype", "choices"), inline=True)
def _run_blocks(
    blocks: Block,
    x: jax.Array,
    angles: jax.Array | None,
    causal: bool,
    remat: str,
    every: bool,
    loop: str,
    dtype: DTypeLike,
    choices: Any,
) -> tuple[jax.Array, jax.Array | None]:
    def body(x: jax.Array, block: Block) -> tuple[jax.Array, jax.Array | None]:
        with jax.named_scope(BLOCK):
            x = block(x, angles, causal)
        return x, x if every else None

    policy = REMAT[remat](blocks)
    keep: Any = (lambda function, **_: function) if policy is None else partial(jax.checkpoint, policy=policy)
    blocks = _prepared(blocks, x, dtype)
    run = partial(LOOPS[loop], body, keep)
    first, rest = (jax.tree.map(lambda leaf, cut=cut: leaf[cut], blocks) for cut in (0, slice(1, None)))
    if jax.eval_shape(body, x, first)[0].shape == x.shape:
        return run(x, blocks)
    # a block that gives every task a result of its own changes the shape: it stands before the scan of those that keep it
    x, states = keep(body)(x, first)
    states = None if states is None else states[None]
    if blocks.norm1.scale.shape[0] == 1:
        return x, states
    x, others = run(x, rest)
    return x, None if states is None or others is None else jnp.concatenate([states, others])


def _prepared(blocks: Block, x: jax.Array, dtype: DTypeLike) -> Block:
    """The blocks, their norms and whatever stands in the place of their kernels told once what is coming: x [..., N, D]."""
    blocks = jax.tree.map(lambda leaf: leaf, blocks)
    modules: Any = nnx.iter_modules(blocks)
    for _, module in modules:
        if hasattr(module, "prepare"):
            module.prepare(x.size // x.shape[-1], dtype)
    return blocks


def run_stages(
    stages: Sequence[Block],
    x: jax.Array,
    angles: jax.Array | None,
    causal: bool = False,
    remat: str = "none",
    loop: str = "scan",
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, list[jax.Array]]:
    """Runs one stack of blocks after another, as `run_blocks` runs one.

    Returns:
      the last block's result, and what branched off before it, [T, ..., N, D] each.
    """
    branches = []
    for stage in stages:
        x, _ = run_blocks(stage, x, angles, causal, remat, loop=loop, dtype=dtype)
        if stage.branches:
            branches.append(x[:-1])
            x = x[-1]
    return x, branches


def every_state(
    stages: Sequence[Block], x: jax.Array, angles: jax.Array | None, causal: bool = False, dtype: DTypeLike | None = None
) -> list[jax.Array]:
    """The first block's input and every block's result, each stage's in an array [depth, ..., N, D], of branches what leads off."""
    states: list[Any] = [x[None]]
    for stage in stages:
        x, own = run_blocks(stage, x, angles, causal, every=True, dtype=dtype)
        if own is not None and stage.branches:
            x, own = x[-1], own[:, :-1]
        states.append(own)
    return states


def stack_blocks(depth: int, make: type[Block], *args: int, rngs: nnx.Rngs, **options: Any) -> Block:
    """`depth` blocks as one whose every leaf has a leading axis [depth, ...]."""

    @nnx.split_rngs(splits=depth)
    @nnx.vmap(in_axes=0, out_axes=0)
    def build(rngs: nnx.Rngs) -> Block:
        return make(*args, rngs=rngs, **options)

    return build(rngs)
