"""Whether an attention kernel computes attention, and how fast: any function with the signature of `AttentionKernel`.

    import jaxface

    def mine(q, k, v, *, angles=None, causal=False): ...

    report = jaxface.kernels.check(mine)  # prints a table; report.ok says whether all of it holds

The reference is the formula in float64 in NumPy, and its gradients by hand; it shares no line with the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from jaxface.kernels import operation_check
from jaxface.kernels.attention import KERNELS, AttentionKernel, get_kernel
from jaxface.kernels.verdicts import Verdicts, as_text, in_a_line, named, relative_error
from jaxface.timing import interleaved, medians

ATTENTION = "attention"
HEADS = 2


@dataclass(frozen=True)
class Case:
    """One shape to be right in.

    Attributes:
      name: what it is there for.
      queries: N.
      keys: M; equal to N where rotary angles or a causal mask are given.
      width: d of a head.
      turned: with rotary angles.
      spread: standard deviation of q and k: scores have its square.
      front: leading axes.
    """

    name: str
    queries: int
    keys: int
    width: int
    turned: bool = False
    causal: bool = False
    spread: float = 1.0
    front: tuple[int, ...] = (1, HEADS)


CASES = (
    Case("PE-L at 336", 577, 577, 64, turned=True),
    Case("PE-B at 224", 197, 197, 64, turned=True),
    Case("PE-L at 448", 1025, 1025, 64, turned=True),
    Case("pool of PE-L", 1, 577, 128),
    Case("pool of PE-B", 1, 197, 96),
    Case("one token", 1, 1, 64, turned=True),
    Case("tail of one", 65, 65, 64, turned=True),
    Case("tail short of one", 127, 127, 64),
    Case("more keys than queries", 33, 130, 64),
    Case("more queries than keys", 130, 33, 64),
    Case("width 24", 50, 50, 24, turned=True),
    Case("width 32", 50, 50, 32, turned=True),
    Case("width 96", 50, 50, 96, turned=True),
    Case("width 128", 50, 50, 128, turned=True),
    Case("text tower", 32, 32, 64, causal=True),
    Case("causal with a tail", 77, 77, 64, causal=True),
    Case("causal and turned", 130, 130, 64, causal=True, turned=True),
    Case("large scores", 70, 70, 64, spread=10.0),
    Case("large scores, turned", 70, 70, 64, spread=10.0, turned=True),
    Case("axis of tasks in front", 20, 20, 64, turned=True, front=(3, 2, HEADS)),
)
DTYPES = {"fp32": np.dtype(np.float32), "bf16": np.dtype(jnp.bfloat16)}
ROUNDING = {"fp32": 2e-6, "bf16": 2e-2}
"""Allowed error of a result, as a share of its largest value: some roundings of the dtype."""


def tolerance(dtype: str, case: Case) -> float:
    """The allowed error: a rounding of a score s changes its weight by s times that. In bf16 only turned q and k are rounded before it."""
    return ROUNDING[dtype] * (1 + case.spread**2 / 8 if case.turned or dtype == "fp32" else 1)


def reference(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, g: np.ndarray, angles: np.ndarray | None, causal: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The result [..., N, d] and the gradients of sum(result * g) in q, k and v, in float64."""
    q, k, v, g = (np.asarray(x, np.float64) for x in (q, k, v, g))
    turn = None if angles is None else np.exp(1j * np.asarray(angles, np.float64))

    def turned(x: np.ndarray, by: np.ndarray | None) -> np.ndarray:
        return x if by is None else (np.ascontiguousarray(x).view(np.complex128) * by).view(np.float64)

    tq, tk = turned(q, turn), turned(k, turn)
    scale = 1 / np.sqrt(q.shape[-1])
    scores = scale * tq @ np.swapaxes(tk, -1, -2)
    if causal:
        scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    d_weights = g @ np.swapaxes(v, -1, -2)
    d_scores = scale * weights * (d_weights - np.sum(weights * d_weights, -1, keepdims=True))
    back = None if turn is None else turn.conj()
    dq, dk = turned(d_scores @ tk, back), turned(np.swapaxes(d_scores, -1, -2) @ tq, back)
    return weights @ v, dq, dk, np.swapaxes(weights, -1, -2) @ g


def arrays_for(case: Case, dtype: str) -> tuple[list[np.ndarray], np.ndarray | None]:
    """Random q, k, v and cotangent of the case in a dtype, and its angles: as large as those of 40 positions."""
    random = np.random.default_rng(0)
    lengths = (case.queries, case.keys, case.keys, case.queries)
    spreads = (case.spread, case.spread, 1.0, 1.0)
    arrays = [
        (spread * random.standard_normal((*case.front, length, case.width))).astype(DTYPES[dtype])
        for length, spread in zip(lengths, spreads, strict=True)
    ]
    angles = random.uniform(0, 40, (case.queries, case.width // 2)).astype(np.float32) if case.turned else None
    return arrays, angles


@dataclass(frozen=True)
class Row:
    """What came of one case in one dtype.

    Attributes:
      errors: of the result and of the gradients of q, k and v: largest difference over largest value of the reference.
      seconds: of one call forward and backward, if timed; `plain_seconds` of the plain XLA kernel.
      failure: the exception that it ended with.
    """

    case: Case
    dtype: str
    allowed: float
    errors: tuple[float, ...] = ()
    seconds: float | None = None
    plain_seconds: float | None = None
    failure: str = ""

    @property
    def ok(self) -> bool:
        return not self.failure and all(error <= self.allowed for error in self.errors)


@dataclass(frozen=True)
class Report(Verdicts):
    """What came of all cases. As a string, a table."""

    def table(self) -> Table:
        """The rows as a table: errors, what is allowed, and times where they were taken."""
        table = Table()
        for name in ("case", "N", "M", "d", "dtype", "result", "dq", "dk", "dv", "allowed", "ms", "xla ms", ""):
            table.add_column(name, justify="left" if name in ("case", "dtype", "") else "right", no_wrap=True)
        for row in self.rows:
            case = row.case
            errors = [f"{error:.1e}" for error in row.errors] or ["-"] * 4
            times = ["" if value is None else f"{1e3 * value:.2f}" for value in (row.seconds, row.plain_seconds)]
            shape = (str(case.queries), str(case.keys), str(case.width))
            verdict = "ok" if row.ok else "FAILED"
            table.add_row(case.name, *shape, row.dtype, *errors, f"{row.allowed:.1e}", *times, verdict)
        return table

    def __str__(self) -> str:
        raised = "".join(f"{row.case.name}, {row.dtype}: {row.failure}\n" for row in self.rows if row.failure)
        return f"{as_text(self.table())}{raised}attention kernel {self.kernel}: {self.count()}"

    __repr__ = __str__


def check(
    kernel: AttentionKernel | str,
    *,
    cases: Sequence[Case] = CASES,
    dtypes: Sequence[str] = (),
    rounds: int = 5,
    show: bool = True,
    operation: str = ATTENTION,
) -> Report | operation_check.Report:
    """Runs a kernel, forward and backward, through every case and dtype, against the formula in float64.

    Args:
      kernel: a function, or the name of a registered kernel.
      dtypes: of `DTYPES`; all that the kernel is for if none is named.
      operation: attention, or one of `jaxface.kernels.operations`, which has cases of its own and is not timed.
      rounds: timed calls of each case, in turn with the plain XLA kernel; 0 times nothing.
      show: print the table.

    Raises UserError for an unknown name.
    """
    if operation != ATTENTION:
        found = operation_check.check_operation(operation, kernel, dtypes or tuple(DTYPES))
        if show:
            print(found)
        return found
    name, function = named(kernel, get_kernel)
    dtypes = dtypes or [dtype for dtype, of in DTYPES.items() if of.itemsize == 2 or name not in KERNELS or not KERNELS.get(name).half]
    report = Report(name, tuple(_run(function, case, dtype, rounds) for case in cases for dtype in dtypes))
    if show:
        print(report)
    return report


def _run(kernel: AttentionKernel, case: Case, dtype: str, rounds: int) -> Row:
    arrays, angles = arrays_for(case, dtype)
    allowed = tolerance(dtype, case)
    expected = reference(*arrays, angles, case.causal)
    call = _differentiated(kernel, case, angles)
    arrays = jax.device_put(arrays)
    try:
        got = jax.tree.map(lambda x: np.asarray(x, np.float64), call(*arrays))
    except Exception as error:  # whatever a kernel of someone's own raises is a line of the report
        return Row(case, dtype, allowed, failure=in_a_line(error))
    wrong = [f"{a.shape} instead of {b.shape}" for a, b in zip(got, expected, strict=True) if a.shape != b.shape]
    if wrong:
        return Row(case, dtype, allowed, failure=f"shape {wrong[0]}")
    # with one key there is no gradient in q and k: its error is measured against that in v
    sizes = [max(np.abs(x).max(), 0.2 * np.abs(expected[3]).max()) for x in expected]
    errors = tuple(relative_error(a, b, size) for a, b, size in zip(got, expected, sizes, strict=True))
    if not rounds:
        return Row(case, dtype, allowed, errors)
    plain = _differentiated(get_kernel("xla"), case, angles)
    seconds = medians(interleaved({"own": lambda: call(*arrays), "xla": lambda: plain(*arrays)}, rounds))
    return Row(case, dtype, allowed, errors, seconds["own"], seconds["xla"])


def _differentiated(kernel: AttentionKernel, case: Case, angles: np.ndarray | None) -> Callable[..., Any]:
    """(q, k, v, g) -> the result and the gradients of sum(result * g)."""

    @jax.jit
    def call(q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
        turn = None if angles is None else jnp.asarray(angles)
        y, backward = jax.vjp(lambda q, k, v: kernel(q, k, v, angles=turn, causal=case.causal), q, k, v)
        return y, *backward(g.astype(y.dtype))

    return call
