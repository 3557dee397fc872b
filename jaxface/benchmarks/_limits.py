"""What a step must do, by hand, and what a machine can do: the two sides of a roofline (Williams et al. 2009)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxface.kernels.matmul import sums_kernel
from jaxface.models.variants import EncoderConfig
from jaxface.runs.costs import encoder_flops
from jaxface.timing import interleaved


@dataclass(frozen=True)
class Setting:
    """What is counted.

    Attributes:
      images: of a step, on one device.
      rank: of adapters.
      tasks: number of heads, and of MTLoRA's updates.
      dtype: of activations and frozen kernels.
    """

    encoder: EncoderConfig
    image_size: int
    images: float
    rank: int = 64
    tasks: int = 3
    dtype: DTypeLike = jnp.float32

    @property
    def tokens(self) -> int:
        """Of an image."""
        return (self.image_size // self.encoder.patch) ** 2 + self.encoder.prefix

    @property
    def itemsize(self) -> int:
        return jnp.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Work:
    """FLOPs of matrix products, and the bytes that at least pass between memory and chip."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, factor: float) -> Work:
        return Work(self.flops * factor, self.bytes * factor)

    __rmul__ = __mul__


def _linears(c: EncoderConfig) -> list[tuple[int, int]]:
    """(in, out) of a block's four kernels."""
    d, m = c.width, c.mlp_width
    return [(d, 3 * d), (d, d), (d, m), (m, d)]


def block_forward(s: Setting) -> Work:
    """One block's forward pass: each product and each normalisation reads its operands and writes its result once."""
    c, n = s.encoder, s.images * s.tokens
    products = sum(2 * n * i * o for i, o in _linears(c))
    attention = 4 * s.images * s.tokens**2 * c.width
    values = n * (18 * c.width + 4 * c.mlp_width)
    return Work(products + attention, s.itemsize * (values + sum(i * o for i, o in _linears(c))))


def block_backward(s: Setting) -> Work:
    """The gradient of a block's input: every product once more, and five in attention, whose weights are formed again, for the two."""
    c, n = s.encoder, s.images * s.tokens
    forward = block_forward(s)
    attention = 4 * s.images * s.tokens**2 * c.width
    return Work(forward.flops + 1.5 * attention, forward.bytes + s.itemsize * n * (10 * c.width + 2 * c.mlp_width))


def block_dense_gradients(s: Setting) -> Work:
    """The gradients of a block's kernels: each reads its input and its output's gradient, and AdamW reads and writes three arrays."""
    c, n = s.encoder, s.images * s.tokens
    kernels = sum(i * o for i, o in _linears(c))
    return Work(2 * n * kernels, s.itemsize * sum(n * (i + o) for i, o in _linears(c)) + 7 * 4 * kernels)


def block_adapters(s: Setting) -> Work:
    """What low-rank updates add to a block's forward and backward pass: summed with W where that is cheaper, else thin products."""
    total = Work()
    n, r = s.images * s.tokens, s.rank
    for i, o in _linears(s.encoder):
        gradients = 2 * n * r * (2 * i + 2 * o)  # x A again, g B^T, and the gradients of B and A
        if sums_kernel(n, i, o, s.dtype):
            added = 2 * 2 * i * o * r
        else:
            added = 2 * n * r * (i + o) + 2 * n * r * i
        total += Work(gradients + added, s.itemsize * n * 2 * (i + o) + 7 * 4 * r * (i + o))
    return total


def outside(s: Setting) -> Work:
    """Patches, pool and projection, forward."""
    c = s.encoder
    all_ = sum(encoder_flops(c, s.image_size).values())
    blocks = c.depth * block_forward(s).flops / s.images
    weights = c.patch**2 * 3 * c.width + (12 * c.width**2 if c.pool else 0) + c.width * (c.output or 0)
    return Work(s.images * (all_ - blocks), s.itemsize * (weights + s.images * s.tokens * 6 * c.width))


def heads(s: Setting) -> Work:
    """The classifiers, forward and backward."""
    d = s.encoder.features
    return s.tasks * Work(3 * 2 * s.images * d * d, 9 * 4 * d * d)


def forward(s: Setting) -> Work:
    return s.encoder.depth * block_forward(s) + outside(s)


def linear_probe(s: Setting) -> Work:
    return forward(s) + heads(s)


def last_blocks(s: Setting) -> Work:
    return linear_probe(s) + 4 * (block_backward(s) + block_dense_gradients(s)) + 2 * outside(s)


def low_rank(s: Setting) -> Work:
    return linear_probe(s) + s.encoder.depth * (block_backward(s) + block_adapters(s)) + outside(s)


def task_specific(s: Setting) -> Work:
    """Of the last block only the fused qkv's base is shared by the tasks; the rest, and the pool, run once for each."""
    c, n = s.encoder, s.images * s.tokens
    own = block_forward(s) + block_backward(s) + block_adapters(s) + 2 * outside(s)
    shared = Work(2 * n * 3 * c.width**2, 0)
    return low_rank(s) + (s.tasks - 1) * (own + -1.0 * shared)


def full(s: Setting) -> Work:
    return linear_probe(s) + s.encoder.depth * (block_backward(s) + block_dense_gradients(s)) + 2 * outside(s)


WORK: dict[str, Callable[[Setting], Work]] = {
    "forward": forward,
    "lp": linear_probe,
    "ft4": last_blocks,
    "lora": low_rank,
    "dora": low_rank,
    "mtlora": task_specific,
    "full": full,
}
"""What each command must do. DoRA's norm is below a hundredth of LoRA's work and is left out: the limit is LoRA's."""


@dataclass(frozen=True)
class Machine:
    """What a device does at best.

    Attributes:
      flops: of matrix products a second.
      bytes: between memory and chip a second.
    """

    name: str
    flops: float
    bytes: float

    def seconds(self, work: Work) -> dict[str, float]:
        """The time that each of the two limits asks for: the work takes the longer one at least."""
        return {"products": work.flops / self.flops, "memory": work.bytes / self.bytes}


def machine_probe(dtype: DTypeLike = jnp.float32, rounds: int = 3) -> Callable[[], Machine]:
    """A function that measures the first device as it is now: the best rate of square matrix products and of x + a y out of caches."""
    device = jax.local_devices()[0]
    is_cpu = device.platform == "cpu"
    products = {side: jnp.ones((side, side), dtype) for side in ((1024, 2048) if is_cpu else (4096, 8192))}
    length = 2**25 if is_cpu else 2**28
    x, y = jnp.ones(length, jnp.float32), jnp.ones(length, jnp.float32)
    multiply = jax.jit(lambda x: x @ x)
    add = jax.jit(lambda x, y: x + 2 * y)
    cases = {str(side): lambda x=x: multiply(x) for side, x in products.items()} | {"memory": lambda: add(x, y)}

    def probe() -> Machine:
        seconds = {name: min(values) for name, values in interleaved(cases, rounds).items()}
        rate = max(2 * side**3 / seconds[str(side)] for side in products)
        return Machine(f"this machine, {device.device_kind}", rate, 3 * 4 * length / seconds["memory"])

    return probe


def typical(machines: Sequence[Machine]) -> Machine:
    """The medians of what a machine did at different times."""
    return Machine(machines[0].name, median(m.flops for m in machines), median(m.bytes for m in machines))
