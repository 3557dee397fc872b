"""A vision tower: patches, blocks of attention and MLPs, pooling, projection. What sets families apart stands in `EncoderConfig`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jax.typing import DTypeLike

from jaxface.errors import UserError
from jaxface.kernels import operations
from jaxface.kernels.attention import fill, require_kernel
from jaxface.kernels.normalize import at_least_float32
from jaxface.kernels.operations import OWN, PATCH_EMBEDDING, run_kernel
from jaxface.models.blocks import Block, every_state, run_stages, stack_blocks
from jaxface.models.config import PIXELS, EncoderConfig
from jaxface.models.layers import LayerNorm, Linear
from jaxface.models.pool import READOUTS, AttentionPool
from jaxface.models.positions import resize_positions
from jaxface.models.rope import ROPES, rope_angles
from jaxface.models.sharding import any_mesh
from jaxface.models.tree import shallow_copy


class Encoder(nnx.Module):
    """A vision tower of any family.

    Images come in -1..1 for all: `embed` normalises them as the encoder's training did, so that nobody else has to know how that was.

    Its blocks stand in stages: each a `Block` whose leaves are stacked along a leading axis. A new encoder has one stage; where
    blocks differ (some train, some have adapters per task) `split_stages` cuts it.

    Attributes:
      remat: what a block keeps for its backward pass, a policy of `REMAT`.
      loop: how blocks come one after another, an entry of `LOOPS`.
      dtype: of activations; parameters are cast to it where they are used, layer norms and softmax compute in float32.
      residual: dtype of the sum that goes from block to block, or None for `dtype`. In bfloat16 each addition rounds it: with float32
        features come two to three times as near, as under torch.autocast, for twice its bytes.
      fusion: what makes one set of tokens of those that branched off at several depths and the last block's [S, T, B, N, D], or None.
    """

    operation, implementation = PATCH_EMBEDDING, OWN
    fusion: Any = None

    def __init__(
        self,
        config: EncoderConfig,
        *,
        rngs: nnx.Rngs,
        remat: str = "products",
        dtype: DTypeLike = jnp.float32,
        residual: DTypeLike | None = None,
    ) -> None:
        self.config = config
        self.remat = remat
        self.loop = "scan"
        self.dtype, self.residual = dtype, residual
        width, c = config.width, config
        self.patch = Linear(c.patch * c.patch * 3, width, bias=c.patch_bias, rngs=rngs)
        self.class_token = nnx.Param(width**-0.5 * jax.random.normal(rngs.params(), (width,))) if c.class_token else None
        self.registers = nnx.Param(width**-0.5 * jax.random.normal(rngs.params(), (c.registers, width))) if c.registers else None
        places = (c.placed + c.grid**2, width)
        self.positions = nnx.Param(width**-0.5 * jax.random.normal(rngs.params(), places)) if c.positions else None
        self.norm_pre = LayerNorm(width, c.epsilon) if c.norm_pre else None
        mlp = {"activation": c.activation, "gate": c.gate, "epsilon": c.epsilon}
        attention = {"qkv_bias": c.qkv_bias, "halves": c.rope != "none" and ROPES[c.rope].halves}
        shape = (width, c.heads, c.mlp_width)
        self.stages = nnx.List([stack_blocks(c.depth, Block, *shape, layer_scale=c.layer_scale, **attention, **mlp, rngs=rngs)])
        self.norm_post = LayerNorm(width, c.epsilon) if c.norm_post else None
        self.pool = make_pool(c, rngs) if c.pool else None
        self.projection = Linear(width, c.output, bias=c.output_bias, rngs=rngs) if c.output else None

    def embed(self, images: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Images [B, H, W, 3] in -1..1 -> the first block's input [B, N, D] and the rotary angles [N, d / 2], or None without any.

        Raises UserError if a side is not a multiple of the patch.
        """
        c = self.config
        require_images(images, c.patch)
        batch, height, width, _ = images.shape
        rows, columns = height // c.patch, width // c.patch
        x = run_kernel(PATCH_EMBEDDING, self.implementation, as_trained(images, c).astype(self.dtype), c.patch, self.patch)
        x = x.astype(self.residual or self.dtype)
        before = [] if self.class_token is None else [self.class_token[...].astype(x.dtype)[None]]
        before += [] if self.registers is None else [self.registers[...].astype(x.dtype)]
        if self.positions is not None:
            places = resize_positions(self.positions[...], rows, columns, c.placed, c.resize).astype(x.dtype)
            x = x + places[c.placed :]
            before = [before[0] + places[:1], *before[1:]] if c.placed else before
        x = jnp.concatenate([*(jnp.broadcast_to(tokens, (batch, *tokens.shape)) for tokens in before), x], 1)
        angles = rope_angles(c.rope, rows, columns, c.width // c.heads, c.class_token, c.registers, at_least_float32(x.dtype))
        return x if self.norm_pre is None else self.norm_pre(x), None if angles is None else jnp.asarray(angles)

    def _filled(self, x: jax.Array, angles: jax.Array | None) -> jax.Array:
        """Tokens [B, N, D] with the rows behind them that the attention kernel wants; none without angles, which count the tokens."""
        return x if angles is None else fill(x, self.config.width // self.config.heads, self.stages[0].attn.attention)

    @any_mesh
    def tokens(self, images: jax.Array) -> jax.Array:
        """[B, H, W, 3] in -1..1 -> all tokens [B, N, D] before pooling (after the last norm where the variant has one), in `residual`."""
        x, angles = self.embed(images)
        count = x.shape[-2]
        x, branches = run_stages(self.stages, self._filled(x, angles), angles, remat=self.remat, loop=self.loop, dtype=self.dtype)
        x = x[..., :count, :]
        if self.fusion is not None:
            own = jnp.broadcast_to(x, (len(branches[0]), *x.shape[-3:]))
            x = self.fusion(jnp.stack([*(branch[..., :count, :] for branch in branches), own]))
        return x if self.norm_post is None else self.norm_post(x)

    @any_mesh
    def hidden_states(self, images: jax.Array) -> jax.Array:
        """[B, H, W, 3] in -1..1 -> the first block's input and every block's result, [depth + 1, B, N, D].

        Where blocks give every task a result of its own, [depth + 1, tasks, B, N, D]: what comes before them is every task's.
        """
        x, angles = self.embed(images)
        count = x.shape[-2]
        states = [state[..., :count, :] for state in every_state(self.stages, self._filled(x, angles), angles, dtype=self.dtype)]
        axes = max(states, key=jnp.ndim).shape[1:]
        return jnp.concatenate([jnp.broadcast_to(s if s.shape[1:] == axes else s[:, None], (len(s), *axes)) for s in states])

    @any_mesh
    def attention_maps(self, images: jax.Array, blocks: Sequence[int] | None = None) -> jax.Array:
        """[B, H, W, 3] in -1..1 -> how much every token takes from every other in the blocks: [blocks, B, heads, N, N], rows sum to 1.

        Tokens are the class token, the registers (`config.prefix` together) and the patches, row by row. The attention pool's own map,
        [B, heads, N], is `encoder.pool.weights(encoder.tokens(images))`.

        Args:
          blocks: which ones, from 0 or, negative, from the end; None for all, of which large encoders have gigabytes.

        Raises UserError for a block that is not there.
        """
        depth = self.config.depth
        wanted = list(range(depth)) if blocks is None else [number + depth * (number < 0) for number in blocks]
        if not wanted or not all(0 <= number < depth for number in wanted):
            raise UserError(f"blocks {list(blocks or ())}: the encoder has blocks 0 to {depth - 1}")
        states, (_, angles) = self.hidden_states(images), self.embed(images)
        places = [(stage, i) for stage in self.stages for i in range(stage.norm1.scale.shape[0])]
        found = []
        for number in wanted:
            stage, i = places[number]
            block = jax.tree.map(lambda leaf, i=i: leaf[i], stage)
            found.append(block.attn.weights(block.norm1(states[number]).astype(self.dtype), angles))
        return jnp.stack(found)

    @any_mesh
    def pooled(self, tokens: jax.Array) -> jax.Array:
        """Tokens [B, N, D] -> features [B, output]; without a pool what the configuration's readout makes of them, or all of them."""
        x = READOUTS[self.config.readout](tokens, self.config.prefix) if self.pool is None else self.pool(tokens.astype(self.dtype))
        return x if self.projection is None else self.projection(x.astype(self.dtype))

    @any_mesh
    def __call__(self, images: jax.Array) -> jax.Array:
        """[B, H, W, 3] in -1..1 -> features [B, output]; variants without a pool and a readout return their tokens [B, N, D]."""
        return self.pooled(self.tokens(images))


def make_pool(c: EncoderConfig, rngs: nnx.Rngs) -> AttentionPool:
    """The attention pool that a configuration describes."""
    return AttentionPool(c.width, c.pool_heads, c.pool_hidden, activation=c.activation, epsilon=c.epsilon, rngs=rngs)


def as_trained(images: jax.Array, c: EncoderConfig) -> jax.Array:
    """Images in -1..1 as those were that the encoder learned from: those are they, or they are normalised by other means and deviations."""
    mean, deviation = (np.asarray(values, np.float32) for values in PIXELS[c.pixels])
    if (mean == 0.5).all() and (deviation == 0.5).all():
        return images
    return images * (0.5 / deviation).astype(images.dtype) + ((0.5 - mean) / deviation).astype(images.dtype)


USUAL = 16.0
"""Far beyond what normalised images reach, and far below what pixels from 0 to 255 do."""


def require_images(images: jax.Array, patch: int) -> None:
    """Raises UserError for what is no batch of images in -1..1; what values a traced array has cannot be told."""
    if not hasattr(images, "ndim"):
        raise UserError(f"images of type {type(images).__name__}: expected an array [B, H, W, 3]")
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


def at_size(encoder: Encoder, size: int) -> Encoder:
    """The encoder with its positions resampled for images of `size`, which timm would resample otherwise (bicubic, antialiased)."""
    c, side = encoder.config, size // encoder.config.patch
    if size == c.image_size:
        return encoder
    encoder = shallow_copy(encoder)
    if encoder.positions is not None:
        encoder.positions = nnx.Param(resize_positions(encoder.positions[...], side, side, c.placed, c.resize))
    encoder.config = replace(c, image_size=size)
    return encoder


def use_attention(encoder: Encoder, kernel: str) -> None:
    """Has the blocks and the pool attend with a kernel of `jaxface.kernels.attention`. Raises UserError if there is none of that name."""
    require_kernel(kernel)
    modules: Any = nnx.iter_modules(encoder)
    for _, module in modules:
        if hasattr(module, "attention"):
            module.attention = kernel


def use_kernels(encoder: Any, choice: Mapping[str, str]) -> None:
    """Has an encoder run kernels of `jaxface.kernels.operations` by name: {"normalization": "mine"}. Raises UserError for unknown names."""
    operations.use_kernels((module for _, module in nnx.iter_modules(encoder)), choice)


def random_encoder(config: EncoderConfig, seed: int) -> Encoder:
    """A new encoder. One program draws all its arrays: one for each leaves a hundred MB of compiled code behind."""
    return _drawing(config, seed)()


@lru_cache(maxsize=16)
def _drawing(config: EncoderConfig, seed: int) -> Callable[[], Encoder]:
    """The program that draws an encoder: traced once, however often it is asked for."""
    return nnx.jit(lambda: Encoder(config, rngs=nnx.Rngs(seed)))


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


def normalize_images(images: jax.Array, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """uint8 0..255 -> -1..1: mean 0.5 and standard deviation 0.5 of the unit range."""
    return images.astype(dtype) / 127.5 - 1.0
