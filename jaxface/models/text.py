"""The text tower: a causal transformer whose feature stands at the end-of-text token."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from jaxface.errors import UserError
from jaxface.models.blocks import Block, every_state, run_stages, stack_blocks
from jaxface.models.layers import LayerNorm, Linear
from jaxface.models.sharding import any_mesh
from jaxface.models.variants import TextConfig


class Text(nnx.Module):
    """A text tower of the Perception Encoder, CLIP or SigLIP, its blocks in stages as an encoder's."""

    pool = None

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        width = config.width
        self.embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), (config.vocabulary, width)))
        self.positions = nnx.Param(0.01 * jax.random.normal(rngs.params(), (config.context, width)))
        shape = (width, config.heads, config.hidden)
        options = {"activation": config.activation, "epsilon": config.epsilon}
        self.stages = nnx.List([stack_blocks(config.depth, Block, *shape, **options, rngs=rngs)])
        self.norm = LayerNorm(width, config.epsilon)
        self.projection = Linear(width, config.output, bias=config.output_bias, rngs=rngs)

    @any_mesh
    def hidden_states(self, ids: jax.Array) -> jax.Array:
        """Token ids [B, L] -> the first block's input and every block's result, [depth + 1, B, L, D]."""
        return jnp.concatenate(every_state(self.stages, self.embed(ids), None, causal=self.config.causal))

    def embed(self, ids: jax.Array) -> jax.Array:
        """Token ids [B, L] -> [B, L, D]. Raises UserError if L exceeds the context, or an id the vocabulary."""
        if ids.ndim != 2 or ids.shape[1] > self.config.context:
            raise UserError(f"token ids of shape {ids.shape}: expected [B, L] with L at most {self.config.context}")
        if not jnp.issubdtype(ids.dtype, jnp.integer):
            raise UserError(f"token ids of {ids.dtype}: expected whole numbers")
        known = None if isinstance(ids, Tracer) or not ids.size else np.asarray(ids)
        if known is not None and not 0 <= known.min() <= known.max() < self.config.vocabulary:
            raise UserError(f"token ids from {known.min()} to {known.max()}: the vocabulary has 0 to {self.config.vocabulary - 1}")
        # where ids are traced and cannot be looked at, one beyond the vocabulary gives NaN, not some other token's feature
        return self.embedding[...].at[ids].get(mode="fill", fill_value=jnp.nan) + self.positions[...][: ids.shape[1]]

    @any_mesh
    def __call__(self, ids: jax.Array) -> jax.Array:
        """Token ids [B, L], padded -> features [B, output], at the largest id of each row, the end of its text, or at the last token."""
        return self.pooled(run_stages(self.stages, self.embed(ids), None, causal=self.config.causal)[0], ids)

    def pooled(self, x: jax.Array, ids: jax.Array) -> jax.Array:
        """The last block's result [..., L, D] for token ids [B, L] -> features [..., output]."""
        if self.config.last:
            return self.projection(self.norm(x[..., -1, :]))
        ends = ids.argmax(-1).reshape(*[1] * (x.ndim - 3), -1, 1, 1)
        last = jnp.take_along_axis(x, ends, axis=-2)[..., 0, :]
        return self.projection(self.norm(last))
