"""Attention of one block, forward and backward: by a kernel of ours, by JAX's own function, and by PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from jaxface.benchmarks._step_cases import Shape
from jaxface.models.rope import rope_angles
from jaxface.models.variants import get_variant

CALLS = 10
"""Calls of a run: one alone is too short to time."""


def attention_flops(shape: Shape) -> float:
    """Of the two products of the forward pass and the five of the backward pass, which forms the weights again."""
    config = get_variant(shape.variant)
    tokens = (config.image_size // config.patch) ** 2 + config.prefix
    return 7 * 2 * shape.batch_size * config.width * tokens**2


def _arrays(shape: Shape) -> tuple[list[Any], Any]:
    """Random q, k, v and cotangent [B, N, H, d], and the angles [N, d / 2]."""
    config = get_variant(shape.variant)
    side, width = config.image_size // config.patch, config.width // config.heads
    angles = rope_angles("axial", side, side, width, config.class_token, config.registers)
    assert angles is not None
    random = np.random.default_rng(0)
    return [random.standard_normal((shape.batch_size, len(angles), config.heads, width), np.float32) for _ in range(4)], angles


def our_attention(name: str, shape: Shape) -> Callable[[], Any]:
    """A kernel of the registry by name, with rotary positions."""
    from jaxface.kernels.attention import attention

    arrays, angles = _arrays(shape)
    return _differentiated(partial(attention, angles=angles, kernel=name), [np.swapaxes(x, 1, 2) for x in arrays])


def library_attention(name: str, shape: Shape) -> Callable[[], Any]:
    """Our rotation of q and k, and `jax.nn.dot_product_attention` on arrays as it wants them."""
    import jax

    from jaxface.kernels.attention import rotate

    arrays, angles = _arrays(shape)
    turn = partial(rotate, angles=angles[:, None])
    return _differentiated(lambda q, k, v: jax.nn.dot_product_attention(turn(q), turn(k), v), arrays)


def _differentiated(function: Callable[..., Any], arrays: list[Any]) -> Callable[[], Any]:
    """Runs a function of q, k and v forward and, from the last of the arrays, backward."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def call(q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
        y, backward = jax.vjp(function, q, k, v)
        return y, *backward(g)

    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    arrays = [jnp.asarray(x, dtype) for x in arrays]

    def run() -> None:
        for _ in range(CALLS):
            jax.block_until_ready(call(*arrays))

    return run


def reference_attention(name: str, shape: Shape) -> Callable[[], Any]:
    """timm's rotation of q and k, and `torch.nn.functional.scaled_dot_product_attention`."""
    from jaxface.benchmarks._step_cases import wait
    from jaxface.originals.reference import import_torch

    torch, _ = import_torch("timm")
    from timm.layers.pos_embed_sincos import apply_rot_embed_cat

    torch.set_num_threads(shape.threads)
    arrays, angles = _arrays(shape)
    place = {"device": "cuda", "dtype": torch.bfloat16} if torch.cuda.is_available() else {}
    q, k, v, g = (torch.from_numpy(np.swapaxes(x, 1, 2).copy()).to(**place) for x in arrays)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    turn = torch.from_numpy(np.concatenate([f(angles).repeat(2, -1) for f in (np.sin, np.cos)], -1)).to(**place)

    def run() -> None:
        for _ in range(CALLS):
            y = torch.nn.functional.scaled_dot_product_attention(apply_rot_embed_cat(q, turn), apply_rot_embed_cat(k, turn), v)
            torch.autograd.grad(y, leaves, g)
        wait(torch)

    return run


OTHERS: dict[str, Callable[[str, Shape], Callable[[], Any]]] = {"jax.nn": library_attention, "torch": reference_attention}
"""What kernels are compared with; another rival is another entry."""
