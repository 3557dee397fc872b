"""Scaled dot-product attention with rotary positions inside: one signature, several implementations, chosen by name or by what suits.

A kernel is a function `(q, k, v, *, angles=None, causal=False) -> [..., H, N, d]`; `register` makes it known, and
`jaxface.kernels.check` says whether it is right, and how fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jaxface.errors import UserError
from jaxface.kernels.matmul import PRODUCT
from jaxface.kernels.plain import is_plain
from jaxface.kernels.platform import platform
from jaxface.kernels.varying import varying_alike
from jaxface.registry import Registry


class AttentionKernel(Protocol):
    """q [..., H, N, d], k and v [..., H, M, d], angles [N, d / 2] radians (then N = M) -> [..., H, N, d].

    A kernel registered with a `multiple` may meet more rows than angles: those behind only fill up, and nothing may attend to them.
    """

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, *, angles: jax.Array | None = None, causal: bool = False) -> jax.Array: ...


class Call(NamedTuple):
    """What the choice of a kernel may look at: the platform ("cpu", "gpu", "tpu"), the dtype, and N, M and d."""

    platform: str
    dtype: np.dtype
    queries: int
    keys: int
    head_width: int
    causal: bool


TURNED = "turned"
"""The name of q, k and v as a fused kernel reads them: kept in the place of the product that they are cut from, where nothing else asks for
that in the backward pass."""
AUTO = "auto"
"""The name that leaves the choice to the kernels' own conditions."""
ANYWHERE = "xla"
"""The kernel for programs that are to run on any device, with any batch."""


class Entry(NamedTuple):
    """A registered kernel, for which calls the automatic choice takes it, what number of rows it wants a multiple of, and whether it
    computes in half precision alone."""

    kernel: AttentionKernel
    suits: Callable[[Call], bool]
    multiple: int = 1
    half: bool = False


KERNELS: Registry[Entry] = Registry("attention kernel", others="or one of your own that --import FILE.py registers")


def register(
    name: str,
    kernel: AttentionKernel,
    *,
    suits: Callable[[Call], bool] = lambda call: False,
    multiple: int = 1,
    half: bool = False,
) -> AttentionKernel:
    """Makes an attention kernel known by its name.

    With `suits` it also takes part in the automatic choice: the kernel registered last whose condition holds is taken. With a `multiple`
    an encoder fills its tokens up to one before its blocks, once, and cuts them after. One that computes in half precision alone (`half`)
    is refused where it is asked for float32.
    """
    return KERNELS.add(name, Entry(kernel, suits, multiple, half)).kernel


def get_kernel(name: str) -> AttentionKernel:
    """The kernel of that name. Raises UserError that lists the known ones."""
    return KERNELS.get(name).kernel


def require_kernel(name: str) -> None:
    """Raises UserError unless `attention` takes the name."""
    if name != AUTO:
        get_kernel(name)


def choose(call: Call) -> str:
    """The name of the kernel for a call: the one registered last whose condition holds, else plain XLA."""
    return next((name for name, entry in reversed(list(KERNELS.items())) if entry.suits(call)), ANYWHERE)


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, angles: jax.Array | None = None, causal: bool = False, kernel: str = AUTO
) -> jax.Array:
    """softmax(rotate(q) rotate(k)^T / sqrt(d)) v per head, softmax in float32, by the named kernel.

    "auto" chooses by platform and shape while the program is traced. Raises UserError if there is no kernel of that name, or it is not for
    q's dtype.
    """
    if is_plain():
        return _attend_forward(q, k, v, angles, causal, False)[0]
    if kernel == AUTO and not all(isinstance(size, int) for size in q.shape):  # exported for any batch: a size is a symbol
        kernel = ANYWHERE
    if kernel == AUTO:
        kernel = choose(Call(platform(), q.dtype, q.shape[-2], k.shape[-2], q.shape[-1], causal))
    entry = KERNELS.get(kernel)
    if entry.half and q.dtype.itemsize != 2:
        raise UserError(
            f"attention kernel {kernel}: computes in bfloat16 or float16, got {q.dtype}; --encoder.precision bf16 or mixed suits it"
        )
    return entry.kernel(q, k, v, angles=angles, causal=causal)


def fill(x: jax.Array, head_width: int, kernel: str) -> jax.Array:
    """Tokens [..., N, D] with zero rows behind them, as many as the kernel of that name wants for self-attention with rotary positions."""
    if is_plain() or not all(isinstance(size, int) for size in x.shape):
        return x
    if kernel == AUTO:
        kernel = choose(Call(platform(), x.dtype, x.shape[-2], x.shape[-2], head_width, False))
    missing = -x.shape[-2] % KERNELS.get(kernel).multiple
    return jnp.pad(x, [*[(0, 0)] * (x.ndim - 2), (0, missing), (0, 0)]) if missing else x


def turn(angles: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of angles, kept for the backward pass."""
    return checkpoint_name(jnp.cos(angles), PRODUCT), checkpoint_name(jnp.sin(angles), PRODUCT)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Turns the interleaved channel pairs (x0, x1) of x [..., N, d] by angles [N, d / 2], in float32.

    The result's channels are in half-split order (all first members of the pairs, then all second ones): equal for q and k,
    so that their products do not notice, and free where a copy to head-major order happens anyway.
    """
    cos, sin = turn(angles)
    first, second = x[..., 0::2], x[..., 1::2]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)


def _unrotate(g: jax.Array, angles: jax.Array) -> jax.Array:
    """The transpose of `rotate`: from half-split order back to interleaved pairs."""
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(g, 2, -1)
    return jnp.stack([first * cos + second * sin, second * cos - first * sin], -1).reshape(g.shape).astype(g.dtype)


def _scores(q: jax.Array, k: jax.Array, causal: bool) -> jax.Array:
    """The scores [..., N, M], in at least float32; one product for both passes, since large ones must round alike in the two."""
    scores = jnp.einsum("...nd,...md->...nm", q, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
    if causal:
        n, m = scores.shape[-2:]
        scores = jnp.where(jnp.arange(n)[:, None] >= jnp.arange(m), scores, -jnp.inf)
    return scores


def attention_weights(q: jax.Array, k: jax.Array, *, angles: jax.Array | None = None) -> jax.Array:
    """softmax(rotate(q) rotate(k)^T / sqrt(d)): the weights [..., H, N, M] by which `attention` means v, in at least float32."""
    if angles is not None:
        q, k = rotate(q, angles), rotate(k, angles)
    return jax.nn.softmax(_scores(q * q.shape[-1] ** -0.5, k, False))


CHAIN = 200
"""Keys over which a processor sums a value at a time, where the highest precision is asked for."""


def _weighed(p: jax.Array, v: jax.Array) -> jax.Array:
    """p [..., N, M] times v [..., M, d], in p's dtype: in one sum, or, at the highest precision on a CPU, in several as torch does.

    One long chain of additions gathers twice the rounding, and several take a quarter more of a forward pass of attention.
    """
    keys, precision = p.shape[-1], getattr(jax.config, "jax_default_matmul_precision", None)
    many = isinstance(keys, int) and keys > CHAIN and precision in ("highest", "float32") and platform() == "cpu"
    parts = -(-keys // CHAIN) if many else 1
    cuts = [slice(keys * part // parts, keys * (part + 1) // parts) for part in range(parts)] if many else [slice(None)]
    sums = [jnp.einsum("...nm,...md->...nd", p[..., c].astype(v.dtype), v[..., c, :], preferred_element_type=p.dtype) for c in cuts]
    return sum(sums[1:], sums[0])


def _heads_forward(q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool) -> tuple[jax.Array, jax.Array]:
    """q turned and scaled, k turned, v -> the result [..., N, d], and the logarithm of each query's sum of weights [..., N, 1]."""
    scores = _scores(q, k, causal)
    largest = scores.max(-1, keepdims=True)
    p = jax.lax.optimization_barrier(jnp.exp(scores - largest))  # else it is formed once for the sum and once for the product
    total = p.sum(-1, keepdims=True)
    return (_weighed(p, v) / total).astype(v.dtype), largest + jnp.log(total)


def _heads_backward(
    q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array, delta: jax.Array, log_total: jax.Array, *, causal: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of q turned and scaled, of k turned, and of v; delta [..., N, 1] is the sum of g times the result."""
    p = jnp.exp(_scores(q, k, causal) - log_total)
    dp = jnp.einsum("...nd,...md->...nm", g, v, preferred_element_type=p.dtype)
    ds = (p * (dp - delta)).astype(q.dtype)
    p, ds = jax.lax.optimization_barrier((p.astype(g.dtype), ds))
    dv = jnp.einsum("...nm,...nd->...md", p, g)
    return jnp.einsum("...nm,...md->...nd", ds, k), jnp.einsum("...nm,...nd->...md", ds, q), dv


SCORES = 2 << 20
"""Bytes of scores that a processor's caches hold beside what is multiplied with them."""


def _heads_at_once(heads: int, queries: int, keys: int) -> int:
    """The divisor of `heads` whose scores come nearest to `SCORES` bytes."""
    wanted = SCORES / (4 * queries * keys)
    return min((n for n in range(1, heads + 1) if heads % n == 0), key=lambda n: abs(math.log(n / wanted)))


def _by_heads(function: Callable[..., Any], blocked: bool, q: jax.Array, k: jax.Array, *others: jax.Array) -> Any:
    """A function of arrays [..., H, N, d] applied to all of them, or, blocked, to a few heads after a few others."""
    *front, queries, _ = q.shape
    heads = math.prod(front)
    few = _heads_at_once(heads, queries, k.shape[-2]) if blocked else heads
    if few == heads:
        return function(q, k, *others)
    arrays = [x.reshape(-1, few, *x.shape[-2:]) for x in (q, k, *others)]
    results = jax.lax.map(lambda arrays: function(*arrays), arrays)
    return jax.tree.map(lambda x: x.reshape(*front, *x.shape[-2:]), results)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, angles: jax.Array | None, causal: bool, blocked: bool) -> jax.Array:
    return _attend_forward(q, k, v, angles, causal, blocked)[0]


def _attend_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, angles: jax.Array | None, causal: bool, blocked: bool
) -> tuple[jax.Array, tuple]:
    if angles is not None:
        q, k = rotate(q, angles), rotate(k, angles)
    q = q * q.shape[-1] ** -0.5
    y, log_total = _by_heads(partial(_heads_forward, causal=causal), blocked, q, k, v)
    # with these two kept, the backward pass needs no maximum, no sum and no product with v again
    y, log_total = checkpoint_name(y, PRODUCT), checkpoint_name(log_total, PRODUCT)
    return y, (q, k, v, angles, y, log_total)


def _attend_backward(causal: bool, blocked: bool, residuals: tuple, g: jax.Array) -> tuple[jax.Array | None, ...]:
    q, k, v, angles, y, log_total = residuals
    delta = jnp.sum(g * y, -1, keepdims=True, dtype=log_total.dtype)
    dq, dk, dv = _by_heads(partial(_heads_backward, causal=causal), blocked, q, k, v, g, delta, log_total)
    dq = dq * q.shape[-1] ** -0.5
    if angles is not None:
        dq, dk = _unrotate(dq, angles), _unrotate(dk, angles)
    return dq, dk, dv, None


_attend.defvjp(_attend_forward, _attend_backward)


@partial(register, ANYWHERE)
def xla_attention(q: jax.Array, k: jax.Array, v: jax.Array, *, angles: jax.Array | None = None, causal: bool = False) -> jax.Array:
    """Plain XLA with a backward pass written out: the scores are formed again instead of kept."""
    return _attend(*varying_alike(q, k, v, angles), causal, False)


@partial(register, "blocked", suits=lambda call: call.platform == "cpu")
def blocked_attention(q: jax.Array, k: jax.Array, v: jax.Array, *, angles: jax.Array | None = None, causal: bool = False) -> jax.Array:
    """The same for a few heads at a time, so that their scores stay in a processor's caches from one pass over them to the next."""
    return _attend(*varying_alike(q, k, v, angles), causal, True)


def token_major(
    attend: Callable[[jax.Array, jax.Array, jax.Array], jax.Array], q: jax.Array, k: jax.Array, v: jax.Array, angles: jax.Array | None
) -> jax.Array:
    """Has a function of arrays [B, N, H, d], as libraries lay them out, attend to our [..., H, N, d], turned before."""
    if angles is not None:
        angles = jnp.pad(angles, ((0, q.shape[-2] - angles.shape[-2]), (0, 0)))
        q, k = rotate(q, angles), rotate(k, angles)
    read = (checkpoint_name(jnp.swapaxes(x.reshape(-1, *x.shape[-3:]), 1, 2), TURNED) for x in (q, k, v))
    y = jnp.swapaxes(attend(*read), 1, 2)
    return y.reshape(*q.shape[:-3], *y.shape[1:])


@partial(register, "dot_product")
def dot_product_attention(q: jax.Array, k: jax.Array, v: jax.Array, *, angles: jax.Array | None = None, causal: bool = False) -> jax.Array:
    """`jax.nn.dot_product_attention`, the library's own form."""
    return token_major(partial(jax.nn.dot_product_attention, is_causal=causal), q, k, v, angles)
