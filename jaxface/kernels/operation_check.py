"""Whether a kernel of an operation computes it, forward and backward, and what its program reads and writes.

The reference is the formula, in float64, with JAX's own derivatives; it shares no line with the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from jaxface.kernels.operations import ADAPTED_PRODUCT, MLP, NORMALIZATION, OPERATIONS, PATCH_EMBEDDING
from jaxface.kernels.verdicts import Verdicts, as_text, in_a_line, named, relative_error

ROUNDING = {"fp32": 1e-5, "bf16": 3e-2}
"""Allowed error of a result or a gradient, as a share of its largest value."""
DTYPES = {"fp32": jnp.float32, "bf16": jnp.bfloat16}
EPSILON = 1e-5


@dataclass(frozen=True)
class Case:
    """Arguments to be right at.

    Attributes:
      name: what it is there for.
      shapes: of the arrays, by name; the first is the activations', in the dtype that is checked, the others are float32.
      call: (kernel, arrays) -> the result.
      formula: arrays -> the result.
      frozen: arrays that get no gradient.
    """

    name: str
    shapes: dict[str, tuple[int, ...]]
    call: Callable[[Any, dict[str, Any]], Any]
    formula: Callable[[dict[str, Any]], Any]
    frozen: tuple[str, ...] = ()


def _normalization(name: str, *shape: int, about: float = 0.0) -> Case:
    def formula(v: dict[str, Any]) -> Any:
        x = v["x"] + about
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + EPSILON) * v["scale"] + v["bias"]

    shapes = {"x": shape, "scale": shape[-1:], "bias": shape[-1:]}
    return Case(name, shapes, lambda kernel, v: kernel(v["x"] + about, v["scale"], v["bias"], EPSILON), formula)


def _adapted(name: str, front: tuple[int, ...], inputs: int, outputs: int, *, gained: bool) -> Case:
    def formula(v: dict[str, Any]) -> Any:
        return v["x"] @ (v["w"] + v["a"] @ v["b"]) * v.get("gain", 1)

    shapes: dict[str, tuple[int, ...]] = {"x": (*front, inputs), "w": (inputs, outputs), "a": (inputs, 4), "b": (4, outputs)}
    shapes |= {"gain": (outputs,)} if gained else {}

    def call(kernel: Any, v: dict[str, Any]) -> Any:
        return kernel(v["x"], v["w"].astype(v["x"].dtype), v["a"], v["b"], v.get("gain"))

    return Case(name, shapes, call, formula, ("w",))


def _linear(v: dict[str, Any], name: str) -> Callable[[Any], Any]:
    return lambda x: x @ v[name].astype(x.dtype)


def _mlp(name: str, *shape: int) -> Case:
    shapes = {"x": shape, "fc": (shape[-1], 3 * shape[-1]), "proj": (3 * shape[-1], shape[-1])}
    return Case(
        name,
        shapes,
        lambda kernel, v: kernel(v["x"], _linear(v, "fc"), _linear(v, "proj"), jnp.tanh),
        lambda v: jnp.tanh(v["x"] @ v["fc"]) @ v["proj"],
    )


def _patches(name: str, rows: int, columns: int, patch: int) -> Case:
    def formula(v: dict[str, Any]) -> Any:
        w = v["w"].reshape(patch, patch, 3, -1)
        each = v["images"].reshape(2, rows, patch, columns, patch, 3)
        return jnp.einsum("brpcqk,pqkd->brcd", each, w).reshape(2, rows * columns, -1)

    shapes = {"images": (2, rows * patch, columns * patch, 3), "w": (patch * patch * 3, 16)}
    return Case(name, shapes, lambda kernel, v: kernel(v["images"], patch, _linear(v, "w")), formula)


CASES: dict[str, tuple[Case, ...]] = {
    NORMALIZATION: (
        _normalization("tokens", 2, 9, 32),
        _normalization("one row of odd width", 1, 7),
        _normalization("far from zero", 3, 5, 24, about=8.0),
    ),
    ADAPTED_PRODUCT: (
        _adapted("LoRA, wider", (2, 40), 24, 48, gained=False),
        _adapted("DoRA, wider", (2, 40), 24, 48, gained=True),
        _adapted("DoRA, narrower", (150,), 48, 24, gained=True),
        _adapted("DoRA, few rows", (3,), 24, 24, gained=True),
    ),
    MLP: (_mlp("tokens", 2, 9, 16), _mlp("one row", 1, 12)),
    PATCH_EMBEDDING: (_patches("a square", 3, 3, 4), _patches("a wide image", 2, 5, 8)),
}
"""What the kernels of each operation are run through."""


@dataclass(frozen=True)
class Row:
    """What came of a case in a dtype.

    Attributes:
      errors: of the result ("result") and of each gradient, as shares of the largest value.
      bytes: that the compiled forward and backward pass read and write here.
      failure: the exception that the kernel raised, or the shape that it gave.
    """

    case: Case
    dtype: str
    allowed: float
    errors: dict[str, float]
    bytes: int = 0
    failure: str = ""

    @property
    def ok(self) -> bool:
        return not self.failure and all(error <= self.allowed for error in self.errors.values())


@dataclass(frozen=True)
class Report(Verdicts):
    """What came of all cases of a kernel of an operation. As a string, a table."""

    operation: str

    def __str__(self) -> str:
        table = Table("case", "dtype", "largest error", "of", "allowed", "kB moved", "", box=None)
        for row in self.rows:
            worst = max(row.errors, key=lambda name: row.errors[name], default="")
            error = f"{row.errors[worst]:.1e}" if worst else "-"
            verdict = "ok" if row.ok else f"FAILED {row.failure}"
            table.add_row(row.case.name, row.dtype, error, worst, f"{row.allowed:.1e}", f"{row.bytes / 1e3:.1f}", verdict)
        return f"{as_text(table)}{self.operation} kernel {self.kernel}: {self.count()}"

    __repr__ = __str__


def check_operation(operation: str, kernel: Any, dtypes: Sequence[str] = tuple(DTYPES)) -> Report:
    """Runs a kernel of an operation, a function or a registered name, through every case and dtype. Raises UserError for unknown names."""
    name, function = named(kernel, OPERATIONS.get(operation).get)
    return Report(name, tuple(_run(function, case, dtype) for case in CASES[operation] for dtype in dtypes), operation)


def _run(kernel: Any, case: Case, dtype: str) -> Row:
    allowed, rng = ROUNDING[dtype], np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in case.shapes.items()}
    first = next(iter(arrays))
    rounded = (first, *case.frozen)
    arrays |= {name: arrays[name].astype(DTYPES[dtype]) for name in rounded}
    expected = _exact(case, {name: np.asarray(array, np.float64) for name, array in arrays.items()})
    frozen = jax.device_put({name: arrays.pop(name) for name in case.frozen})

    def call(arrays: dict[str, Any]) -> Any:
        y, back = jax.vjp(lambda arrays: case.call(kernel, arrays | frozen), arrays)
        return {"result": y, **back(jnp.asarray(_cotangent(y.shape), y.dtype))[0]}

    try:
        compiled = jax.jit(call).lower(arrays).compile()
        got = {name: np.asarray(value, np.float64) for name, value in compiled(arrays).items()}
    except Exception as error:  # whatever a kernel of someone's own raises is a line of the report
        return Row(case, dtype, allowed, {}, failure=in_a_line(error))
    wrong = [f"{name}: {got[name].shape} instead of {value.shape}" for name, value in expected.items() if got[name].shape != value.shape]
    if wrong:
        return Row(case, dtype, allowed, {}, failure=f"shape of {wrong[0]}")
    errors = {name: relative_error(got[name], value) for name, value in expected.items()}
    costs = compiled.cost_analysis() or {}
    return Row(case, dtype, allowed, errors, int(costs.get("bytes accessed", 0)))


def _cotangent(shape: tuple[int, ...]) -> np.ndarray:
    return np.cos(np.arange(np.prod(shape), dtype=np.float32)).reshape(shape)


def _exact(case: Case, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The result and the gradients of what is not frozen, in float64."""
    frozen = {name: arrays.pop(name) for name in case.frozen}
    weights = _cotangent(jax.eval_shape(case.formula, arrays | frozen).shape).astype(np.float64)
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, _differentiated(case.formula, arrays, frozen, weights))


@partial(jax.jit, static_argnums=0)
def _differentiated(formula: Callable[..., Any], arrays: dict[str, Any], frozen: dict[str, Any], weights: Any) -> dict[str, Any]:
    y, back = jax.vjp(lambda arrays: formula(arrays | frozen), arrays)
    return {"result": y, **back(weights)[0]}
