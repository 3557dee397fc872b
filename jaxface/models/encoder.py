"""The Perception Encoder's vision tower: patches, blocks with rotary attention, pooling, projection."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jax.typing import DTypeLike

from jaxface.errors import UserError
from jaxface.kernels.attention import AUTO, attention, require_kernel
from jaxface.kernels.matmul import PRODUCT, product
from jaxface.kernels.plain import is_plain
from jaxface.models.layers import MLP, LayerNorm, Linear
from jaxface.models.pool import AttentionPool, join_heads, split_heads
from jaxface.models.rope import resize_positions, rope_angles
from jaxface.models.sharding import any_mesh
from jaxface.models.variants import EncoderConfig
from jaxface.registry import Registry


class Attention(nnx.Module):
    """Multi-head self-attention with one fused kernel for queries, keys and values."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.attention = AUTO
        self.qkv = Linear(width, 3 * width, rngs=rngs)
        self.out = Linear(width, width, rngs=rngs)

    def __call__(self, x: jax.Array, angles: jax.Array | None, causal: bool = False) -> jax.Array:
        """[..., N, D] -> [..., N, D]"""
        q, k, v = (split_heads(part, self.heads) for part in jnp.split(self.qkv(x), 3, -1))
        return self.out(join_heads(attention(q, k, v, angles=angles, causal=causal, kernel=self.attention)))


class Block(nnx.Module):
    """A pre-norm transformer block, its residual branches scaled per channel where the variant has LayerScale."""

    def __init__(self, width: int, heads: int, mlp_width: int, *, layer_scale: bool = False, rngs: nnx.Rngs) -> None:
        self.norm1 = LayerNorm(width)
        self.attn = Attention(width, heads, rngs=rngs)
        self.norm2 = LayerNorm(width)
        self.mlp = MLP(width, mlp_width, rngs=rngs)
        self.scale1 = nnx.Param(jnp.full(width, 0.1)) if layer_scale else None
        self.scale2 = nnx.Param(jnp.full(width, 0.1)) if layer_scale else None

    def __call__(self, x: jax.Array, angles: jax.Array | None, causal: bool = False) -> jax.Array:
        """[..., N, D] -> [..., N, D]"""
        x = x + _scaled(self.attn(self.norm1(x), angles, causal), self.scale1)
        return x + _scaled(self.mlp(self.norm2(x)), self.scale2)


def _scaled(x: jax.Array, scale: nnx.Param | None) -> jax.Array:
    return x if scale is None else x * scale[...].astype(x.dtype)


def _products(primitive: Any, *arrays: Any, **options: Any) -> Any:
    """Keeps what is named a product, and both results of cuDNN's attention, which nothing names: they spare it a second run."""
    fused = primitive.name.startswith("dot_product_attention_fwd")
    return fused or jax.checkpoint_policies.save_only_these_names(PRODUCT)(primitive, *arrays, **options)


REMAT: Registry[Any] = Registry(
    "remat",
    {
        "none": None,
        "products": _products,
        "full": jax.checkpoint_policies.nothing_saveable,
    },
)
"""What a block keeps for its backward pass: all that autodiff asks for, the results of matrix products and attention, or its input alone.

The products are the only results that cost much to form again; keeping all else takes twice the memory, and as long to write and read."""


def run_blocks(
    blocks: Block, x: jax.Array, angles: jax.Array | None, causal: bool = False, remat: str = "none", every: bool = False
) -> tuple[jax.Array, jax.Array | None]:
    """Runs blocks stacked along a leading axis of every leaf, one after another.

    Returns:
      the last block's result [..., N, D], and with `every` each block's [depth, ..., N, D], else None.
    """

    return _run_blocks(blocks, x, angles, causal, remat, every, is_plain())


@partial(jax.jit, static_argnames=("causal", "remat", "every", "plain"), inline=True)
def _run_blocks(
    blocks: Block, x: jax.Array, angles: jax.Array | None, causal: bool, remat: str, every: bool, plain: bool
) -> tuple[jax.Array, jax.Array | None]:
    def body(x: jax.Array, block: Block) -> tuple[jax.Array, jax.Array | None]:
        x = block(x, angles, causal)
        return x, x if every else None

    if (policy := REMAT[remat]) is not None:
        body: Any = jax.checkpoint(body, policy=policy, prevent_cse=False)
    first, rest = (jax.tree.map(lambda leaf, cut=cut: leaf[cut], blocks) for cut in (0, slice(1, None)))
    if jax.eval_shape(body, x, first)[0].shape == x.shape:
        return jax.lax.scan(body, x, blocks)
    # a block that gives every task a result of its own changes the shape: it stands before the scan of those that keep it
    x, states = body(x, first)
    states = None if states is None else states[None]
    if blocks.norm1.scale.shape[0] == 1:
        return x, states
    x, others = jax.lax.scan(body, x, rest)
    return x, None if states is None or others is None else jnp.concatenate([states, others])


def run_stages(
    stages: Sequence[Block], x: jax.Array, angles: jax.Array | None, causal: bool = False, remat: str = "none", every: bool = False
) -> tuple[jax.Array, jax.Array | None]:
    """Runs one stack of blocks after another, as `run_blocks` runs one."""
    states: list[Any] = []
    for stage in stages:
        x, own = run_blocks(stage, x, angles, causal, remat, every)
        states.append(own)
    return x, jnp.concatenate(states) if every else None


def stack_blocks(depth: int, make: type[Block], *args: int, rngs: nnx.Rngs, **options: bool) -> Block:
    """`depth` blocks as one whose every leaf has a leading axis [depth, ...]."""

    @nnx.split_rngs(splits=depth)
    @nnx.vmap(in_axes=0, out_axes=0)
    def build(rngs: nnx.Rngs) -> Block:
        return make(*args, rngs=rngs, **options)

    return build(rngs)


class Encoder(nnx.Module):
    """A vision tower of the Perception Encoder family.

    Its blocks stand in stages: each a `Block` whose leaves are stacked along a leading axis. A new encoder has one stage; where
    blocks differ (some train, some have adapters per task) `split_stages` cuts it.

    Attributes:
      remat: what a block keeps for its backward pass, a policy of `REMAT`.
      dtype: of activations; parameters are cast to it where they are used, layer norms and softmax compute in float32.
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs, remat: str = "products", dtype: DTypeLike = jnp.float32) -> None:
        self.config = config
        self.remat = remat
        self.dtype = dtype
        width, c = config.width, config
        self.patch = Linear(c.patch * c.patch * 3, width, bias=False, rngs=rngs)
        self.class_token = nnx.Param(width**-0.5 * jax.random.normal(rngs.params(), (width,))) if c.class_token else None
        self.positions = nnx.Param(width**-0.5 * jax.random.normal(rngs.params(), (c.grid**2 + c.class_token, width)))
        self.norm_pre = LayerNorm(width)
        self.stages = nnx.List([stack_blocks(c.depth, Block, width, c.heads, c.mlp_width, layer_scale=c.layer_scale, rngs=rngs)])
        self.norm_post = LayerNorm(width) if c.norm_post else None
        self.pool = AttentionPool(width, c.pool_heads, rngs=rngs) if c.pool else None
        self.projection = Linear(width, c.output, bias=c.output_bias, rngs=rngs) if c.output else None

    def embed(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images [B, H, W, 3] in -1..1 -> the first block's input [B, N, D] and the rotary angles [N, d / 2].

        Raises UserError if a side is not a multiple of the patch.
        """
        c = self.config
        require_images(images, c.patch)
        batch, height, width, _ = images.shape
        rows, columns = height // c.patch, width // c.patch
        patches = images.reshape(batch, rows, c.patch, columns, c.patch, 3).swapaxes(2, 3)
        patches = patches.reshape(batch, rows * columns, c.patch * c.patch * 3)
        x = product(patches.astype(self.dtype), self.patch.kernel)
        if self.class_token is not None:
            token = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (batch, 1, c.width))
            x = jnp.concatenate([token, x], 1)
        x = x + resize_positions(self.positions[...], rows, columns, c.class_token).astype(x.dtype)
        return self.norm_pre(x), jnp.asarray(rope_angles(rows, columns, c.width // c.heads, c.class_token))

    @any_mesh
    def tokens(self, images: jax.Array) -> jax.Array:
        """[B, H, W, 3] in -1..1 -> all tokens [B, N, D] before pooling (after the last norm where the variant has one)."""
        x, angles = self.embed(images)
        x, _ = run_stages(self.stages, x, angles, remat=self.remat)
        return x if self.norm_post is None else self.norm_post(x)

    @any_mesh
    def hidden_states(self, images: jax.Array) -> jax.Array:
        """[B, H, W, 3] in -1..1 -> the first block's input and every block's result, [depth + 1, B, N, D].

        Where blocks give every task a result of its own, [depth + 1, tasks, B, N, D]: what comes before them is every task's.
        """
        x, angles = self.embed(images)
        states: list[Any] = [x[None]]
        for stage in self.stages:
            x, every = run_blocks(stage, x, angles, every=True)
            states.append(every)
        axes = max(states, key=jnp.ndim).shape[1:]
        return jnp.concatenate([jnp.broadcast_to(s if s.shape[1:] == axes else s[:, None], (len(s), *axes)) for s in states])

    @any_mesh
    def pooled(self, tokens: jax.Array) -> jax.Array:
        """Tokens [B, N, D] -> features [B, output]; without a pool the tokens as they are."""
        x = tokens if self.pool is None else self.pool(tokens)
        return x if self.projection is None else self.projection(x)

    @any_mesh
    def __call__(self, images: jax.Array) -> jax.Array:
        """[B, H, W, 3] in -1..1 -> features [B, output]; variants without a pool return their tokens [B, N, D]."""
        return self.pooled(self.tokens(images))


USUAL = 16.0
"""Far beyond what normalised images reach, and far below what pixels from 0 to 255 do."""


def require_images(images: jax.Array, patch: int) -> None:
    """Raises UserError for what is no batch of images in -1..1; what values a traced array has cannot be told."""
    if images.ndim != 4 or images.shape[-1] != 3 or images.shape[1] % patch or images.shape[2] % patch or 0 in images.shape:
        hint = ": a single image is images[None]" if images.ndim == 3 else ""
        raise UserError(f"images of shape {images.shape}: expected [B, H, W, 3] with H and W multiples of the patch {patch}{hint}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(f"images of {images.dtype}: expected floating numbers in -1..1, as images / 127.5 - 1 makes them of pixels")
    if isinstance(images, Tracer) or not getattr(images, "is_fully_addressable", True):
        return
    largest = np.abs(np.asarray(images)).max()  # numpy's: a constant of a traced program must not become part of it
    if not largest <= USUAL:
        raise UserError(f"images with values up to {largest:g}: expected -1..1, as images / 127.5 - 1 makes them of pixels")


def use_attention(encoder: Encoder, kernel: str) -> None:
    """Has the blocks and the pool attend with a kernel of `jaxface.kernels.attention`. Raises UserError if there is none of that name."""
    require_kernel(kernel)
    modules: Any = nnx.iter_modules(encoder)
    for _, module in modules:
        if hasattr(module, "attention"):
            module.attention = kernel


def random_encoder(config: EncoderConfig, seed: int) -> Encoder:
    """A new encoder. One program draws all its arrays: one for each leaves a hundred MB of compiled code behind."""
    return nnx.jit(lambda: Encoder(config, rngs=nnx.Rngs(seed)))()


def split_stages(tower: Any, *starts: int) -> None:
    """Cuts the blocks so that a stage begins at each of `starts` (negative counts from the end), and nowhere else."""
    tower.stages = nnx.List([join_stages(tower)])
    cut_stages(tower, [start % tower.config.depth for start in starts])


def cut_stages(tower: Any, starts: Iterable[int]) -> None:
    """Has stages begin at `starts`, too: adapted or not, whatever stands stacked is cut, and shares the memory of what it was."""
    stages, first = [], 0
    for stage in tower.stages:
        last = first + stage.norm1.scale.shape[0]
        edges = sorted({first, last, *(start for start in starts if first < start < last)})
        for start, end in itertools.pairwise(edges):
            stages.append(jax.tree.map(lambda leaf, s=start - first, e=end - first: rows(leaf, s, e), stage))
        first = last
    tower.stages = nnx.List(stages)


def rows(stacked: jax.Array, start: int, end: int) -> jax.Array:
    """stacked[start:end]; on a CPU it is a view of the same memory, since no array ever changes."""
    if (start, end) == (0, stacked.shape[0]):
        return stacked
    concrete = isinstance(stacked, jax.Array) and not isinstance(stacked, Tracer) and stacked.is_fully_addressable
    if not concrete or len(stacked.devices()) > 1 or next(iter(stacked.devices())).platform != "cpu":
        return stacked[start:end]
    return jax.device_put(np.asarray(stacked)[start:end], stacked.sharding if stacked.committed else None, may_alias=True)


def join_stages(tower: Any) -> Block:
    """All blocks as one stack. Raises UserError where they are not alike: merge adapters first where stages differ."""
    stages = list(tower.stages)
    if len(stages) == 1:
        return stages[0]
    try:
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *stages)
    except ValueError:
        raise UserError("blocks are adapted in different ways and are no one stack: merge the encoder first (jaxface.merge)") from None


def normalize_images(images: jax.Array) -> jax.Array:
    """uint8 0..255 -> float32 -1..1: mean 0.5 and standard deviation 0.5 of the unit range."""
    return images.astype(jnp.float32) / 127.5 - 1.0
