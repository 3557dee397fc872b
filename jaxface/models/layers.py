"""The layers that both towers, the pool and the heads are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from jaxface.kernels.cpu_products import product_and_bias, rounds_before_bias
from jaxface.kernels.gelu import gelu
from jaxface.kernels.matmul import PRODUCT, finished, product
from jaxface.kernels.normalize import EPSILON
from jaxface.kernels.operations import MLP as MLP_OPERATION
from jaxface.kernels.operations import NORMALIZATION, OWN, run_kernel
from jaxface.registry import Registry

_SLOPE = 2 * (2 / math.pi) ** 0.5

ACTIVATIONS: Registry[Callable[[jax.Array], jax.Array]] = Registry(
    "activation",
    {
        "gelu": gelu,
        "gelu_tanh": lambda x: x * jax.nn.sigmoid(_SLOPE * (x + 0.044715 * x * x * x)),  # rounds less than the form with tanh
        "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
        "silu": jax.nn.silu,
    },
)
"""The exact (erf) GELU and its two approximations; and what gated MLPs (SwiGLU) have."""


XAVIER = nnx.initializers.xavier_uniform()


class Linear(nnx.Module):
    """`x @ kernel + bias`. The kernel is an array [in, out], or whatever stands in its place and knows how to be multiplied by x.

    Args:
      start: (key, shape) -> the kernel at first.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, start: Callable[..., Any] = XAVIER, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(start(rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out]"""
        if self.bias is None:
            return product(x, self.kernel)
        bias = self.whole_bias()
        if isinstance(self.kernel, nnx.Variable) and rounds_before_bias(x.dtype):
            return checkpoint_name(product_and_bias(x, self.kernel[...], bias), PRODUCT)
        if hasattr(self.kernel, "affine"):
            return self.kernel.affine(x, bias)
        y = product(x, self.kernel)
        if isinstance(self.kernel, nnx.Variable):
            return y + bias.astype(y.dtype)  # libraries add a bias of the product's dtype as they multiply
        return finished(y, None, bias)

    def whole_bias(self) -> jax.Array:
        """[out]; asked for where there is a bias."""
        return self.bias[...]


class KeylessLinear(Linear):
    """Queries, keys and values by one fused kernel, where the keys have no bias: bias [2 D] is the queries' and the values'."""

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        super().__init__(width, 3 * width, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(2 * width))

    def whole_bias(self) -> jax.Array:
        """[3 D], zeros for the keys."""
        q, v = jnp.split(self.bias[...], 2)
        return jnp.concatenate([q, jnp.zeros_like(q), v])


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, statistics in float32.

    Attributes:
      dtype: of the result, or None for x's: the branches of blocks may be computed in fewer bits than they are added up in.
    """

    operation, implementation = NORMALIZATION, OWN

    def __init__(self, width: int, epsilon: float = EPSILON) -> None:
        self.epsilon = epsilon
        self.dtype: DTypeLike | None = None
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def prepare(self, tokens: int, dtype: DTypeLike) -> None:
        """Before a block runs: gives what its branches compute in."""
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]"""
        y = run_kernel(NORMALIZATION, self.implementation, x, self.scale[...], self.bias[...], self.epsilon)
        return y if self.dtype is None else y.astype(self.dtype)


class MLP(nnx.Module):
    """Two linear layers with an activation between them."""

    operation, implementation = MLP_OPERATION, OWN

    def __init__(self, width: int, hidden: int, activation: str = "gelu", *, rngs: nnx.Rngs) -> None:
        self.activation = activation
        self.fc = Linear(width, hidden, rngs=rngs)
        self.proj = Linear(hidden, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]"""
        return run_kernel(MLP_OPERATION, self.implementation, x, self.fc, self.proj, ACTIVATIONS[self.activation])


class GatedMLP(nnx.Module):
    """An MLP whose hidden channels are multiplied by activated ones of a second linear layer: SwiGLU with SiLU (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int, activation: str, *, rngs: nnx.Rngs) -> None:
        self.activation = activation
        self.gate = Linear(width, hidden, rngs=rngs)
        self.value = Linear(width, hidden, rngs=rngs)
        self.proj = Linear(hidden, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]"""
        return self.proj(ACTIVATIONS[self.activation](self.gate(x)) * self.value(x))


class PackedMLP(nnx.Module):
    """The same with one kernel for both: the first half of `fc`'s results is the gate."""

    def __init__(self, width: int, hidden: int, activation: str, *, rngs: nnx.Rngs) -> None:
        self.activation = activation
        self.fc = Linear(width, 2 * hidden, rngs=rngs)
        self.proj = Linear(hidden, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]"""
        gate, value = jnp.split(self.fc(x), 2, -1)
        return self.proj(ACTIVATIONS[self.activation](gate) * value)


MLPS: dict[str, type[MLP] | type[GatedMLP] | type[PackedMLP]] = {"none": MLP, "separate": GatedMLP, "packed": PackedMLP}
"""By where the gate's kernel is."""
