"""The operations that a step is made of besides attention: kernels by name for each, one's own among them.

    from jaxface.kernels.operations import register_kernel

    @register_kernel("normalization", "mine")
    def mine(x, scale, bias, epsilon): ...

`--encoder.kernels normalization=mine` (or `use_kernels(encoder, {"normalization": "mine"})`) takes it, and
`jaxface.kernels.check(mine, operation="normalization")` says whether it is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax

from jaxface.errors import UserError
from jaxface.kernels.matmul import low_rank_product
from jaxface.kernels.normalize import normalize
from jaxface.registry import Registry

Kernel = Callable[..., jax.Array]
K = TypeVar("K", bound=Kernel)
OWN = "own"
"""The name of the kernels that come with the package."""


def mlp(x: jax.Array, fc: Kernel, proj: Kernel, activation: Kernel) -> jax.Array:
    """Two linear layers [..., D] -> [..., hidden] -> [..., D], their kernels adapted or not, with an activation between them."""
    return proj(activation(fc(x)))


def patches(images: jax.Array, patch: int, linear: Kernel) -> jax.Array:
    """Images [B, H, W, 3] as patches, row by row, each a vector (row, column, channel) that a linear layer makes a token of: [B, N, D]."""
    batch, height, width, _ = images.shape
    rows, columns = height // patch, width // patch
    cut = images.reshape(batch, rows, patch, columns, patch, 3).swapaxes(2, 3)
    return linear(cut.reshape(batch, rows * columns, patch * patch * 3))


NORMALIZATION, ADAPTED_PRODUCT, MLP, PATCH_EMBEDDING = "normalization", "adapted_product", "mlp", "patch_embedding"
OPERATIONS: Registry[Registry[Kernel]] = Registry(
    "operation",
    {
        kind: Registry(f"{kind} kernel", {OWN: own}, others="or one of your own that --import FILE.py registers")
        for kind, own in ((NORMALIZATION, normalize), (ADAPTED_PRODUCT, low_rank_product), (MLP, mlp), (PATCH_EMBEDDING, patches))
    },
)
"""The kernels of each operation by name. A kernel has the arguments of the package's own:

normalization    (x [..., D], scale [D], bias [D], epsilon) -> [..., D]
adapted_product  (x [..., in], w [in, out] frozen, a [in, r], b [r, out], gain [out] or None) -> x (w + a b) gain [..., out]
mlp              (x [..., D], fc, proj, activation), functions -> [..., D]
patch_embedding  (images [B, H, W, 3], patch, linear), the last a function [..., 3 patch^2] -> [..., D]; -> [B, N, D]
"""


def register_kernel(operation: str, name: str) -> Callable[[K], K]:
    """Decorator that makes a kernel of an operation known by its name. Raises UserError for an unknown operation."""
    return OPERATIONS.get(operation).register(name)


def run_kernel(operation: str, name: str, *arguments: Any) -> jax.Array:
    """What the named kernel of an operation makes of its arguments."""
    return OPERATIONS.get(operation).get(name)(*arguments)


def kernel_choice(words: Iterable[str]) -> dict[str, str]:
    """`normalization=mine` -> {"normalization": "mine"}. Raises UserError for other words, and for what no file has registered."""
    choice: dict[str, str] = {}
    for word in words:
        operation, equals, name = word.partition("=")
        if not equals or operation in choice:
            raise UserError(f"kernels {word!r}: expected OPERATION=NAME, each operation once, of {', '.join(OPERATIONS)}")
        OPERATIONS.get(operation).get(name)
        choice[operation] = name
    return choice


def use_kernels(modules: Iterable[Any], choice: Mapping[str, str]) -> None:
    """Has modules run the chosen kernels: those whose `operation` it names."""
    for operation, name in choice.items():
        OPERATIONS.get(operation).get(name)
    for module in modules:
        if getattr(module, "operation", None) in choice:
            module.implementation = choice[module.operation]
