"""Whether a JAX model equals a PyTorch one: every value of both beside the original in float64, within a budget that the original sets.

Rounding differs between any two programs that compute the same. How much of it is right, the original says itself: its own run in the
precision that is asked for is so far from its run in float64. A value passes where ours is at most twice as far.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxface.errors import UserError
from jaxface.originals.causes import Departure, likely_cause, parameter_differences
from jaxface.originals.gradients import GRADIENT
from jaxface.originals.hooks import INPUT
from jaxface.originals.values import Values, corresponding, shaped

SCHEMA = 1
FACTOR = 2.0
"""How many times the original's own error ours may be."""
NOTHING = 1e-10
"""A gradient's share of the largest one below which it is zero but for rounding."""
FEW = 64
"""Numbers of which a value's error is luck."""


class Pair(NamedTuple):
    """A JAX model and its original, ready to be run on the same inputs.

    Attributes:
      ours: gives our values (see `jaxface.originals.values`).
      theirs: gives the original's, in a torch dtype by name: float64, float32 or bfloat16.
      table: the original's module for each of ours; where it is empty, names or order and shapes say which belong together.
      parameters: ours by name, and the original's by its names, in float32.
      translate: the original's arrays by its names of parameters under our names, given the original's name of each value.
      tools: gives what causes are tried with, see `jaxface.originals.causes`.
    """

    ours: Callable[[], Values]
    theirs: Callable[[str], Values]
    table: Mapping[str, str]
    parameters: Callable[[], tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]]
    translate: Callable[[Mapping[str, str], Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
    tools: Callable[[], Mapping[str, Any]]


@dataclass(frozen=True)
class Layer:
    """One value of the pass.

    Attributes:
      name: the module that gives it; with `.input` behind it, what the module is given.
      error: ||ours - exact|| / ||exact||, exact being the original's in float64.
      original_error: the same of the original in the precision that is compared.
      budget: the largest error that passes.
    """

    name: str
    error: float
    original_error: float
    budget: float

    @property
    def departs(self) -> bool:
        """Whether ours is too far; what is not finite is, whatever the original's own run gives."""
        return not (math.isfinite(self.error) and self.error <= self.budget)


@dataclass(frozen=True)
class Certificate:
    """What a comparison found.

    Attributes:
      verdict: equal, or differs.
      first_departure: the first value of the pass that is too far, None where none is.
      parameters: the tensors that feed it and differ between the two, with how.
      cause: what explains it, None where nothing that was tried does.
      layers: every value that both have, in the order of the pass.
      unmatched: values of ours that the original has under no name.
      about: versions, hashes and the machine.
      training: what came of training runs, see `jaxface.originals.training_parity.Parity`.
    """

    verdict: str
    first_departure: str | None
    parameters: Mapping[str, str]
    cause: str | None
    layers: Sequence[Layer]
    unmatched: Sequence[str] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    training: Sequence[Mapping[str, Any]] = ()

    def joined(self, other: Certificate) -> Certificate:
        """Both as one, this one's values first."""
        whole = self if self.first_departure is not None else other
        return replace(whole, layers=[*self.layers, *other.layers], unmatched=self.unmatched, about=self.about)

    def with_training(self, runs: Sequence[Any]) -> Certificate:
        """The same with training runs, whose first that differs is the first departure where no value is one."""
        apart = [f"training.{run.method}.step.{run.parted or 0}" for run in runs if run.verdict != "equal"]
        verdict, first = ("differs" if apart else self.verdict), self.first_departure or next(iter(apart), None)
        return replace(self, verdict=verdict, first_departure=first, training=[run.to_json() for run in runs])

    def to_json(self) -> dict[str, Any]:
        """Plain values; docs/howto/compare.md says what they mean."""
        return {"schema": SCHEMA, **asdict(self)}


def certify(pair: Pair, precision: str = "float32", tolerance: float | None = None, about: Mapping[str, Any] | None = None) -> Certificate:
    """Compares every value of a pair.

    Args:
      precision: what ours computes in, and the original's second run: float32 or bfloat16.
      tolerance: one budget for all values, in place of the original's own.
      about: facts that the certificate is to carry.

    Raises UserError where the two have no value in common.
    """
    ours, exact = pair.ours(), pair.theirs("float64")
    names = corresponding(_without_gradients(ours), _without_gradients(exact), pair.table)
    if not names:
        raise UserError("the two models have no value in common: name the modules that belong together (make returns a model and a table)")
    exact = _as_ours(exact, names, ours, pair)
    single = _as_ours(pair.theirs(precision), names, ours, pair)
    judge = Judge(precision, tolerance, exact, single)
    layers = [judge(name, ours[name]) for name in ours if name in exact]
    first = next((layer.name for layer in layers if layer.departs), None)
    differing, cause = {}, None
    if first is not None:
        mine, tensors = pair.parameters()
        theirs = {
            name: array.astype(mine[name].dtype if name in mine else np.float32) for name, array in pair.translate(names, tensors).items()
        }
        differing = parameter_differences(_feeding(first, mine), _feeding(first, theirs))
        cause = likely_cause(Departure(first, ours, exact, mine, theirs, differing, pair.tools()))
    return Certificate(
        "equal" if first is None else "differs",
        first,
        differing,
        cause,
        layers,
        [name for name in ours if name not in exact and not name.endswith(INPUT)],
        {"precision": precision, "factor": FACTOR, **versions(), **(about or {})},
    )


class Judge:
    """What each value's budget is, by the original's own errors.

    A gradient that is zero but for rounding has no length of its own to measure by: the pass's largest takes its place. Of few numbers
    the original's error is luck: they have at least the budget of the middle value of the pass, and gradients, of which parameters' are
    sums over all rows that may cancel, that of the one with the largest error.
    """

    def __init__(self, precision: str, tolerance: float | None, exact: Values, single: Values) -> None:
        self.exact, self.single, self.tolerance = exact, single, tolerance
        self.least = float(jax.numpy.finfo(precision).eps) / 2  # what is exact in the original is allowed one rounding
        self.largest = max((_length(x) for name, x in exact.items() if name.endswith(GRADIENT)), default=0.0)
        errors = {name: self.distance(name, single[name]) for name in exact}
        forward = [error for name, error in errors.items() if not name.endswith(GRADIENT) and math.isfinite(error)]
        back = [error for name, error in errors.items() if name.endswith(GRADIENT) and math.isfinite(error)]
        self.few = {False: float(np.median(forward or [0.0])), True: max(back, default=0.0)}

    def distance(self, name: str, value: np.ndarray) -> float:
        """||value - exact|| / ||exact||, infinite for what is not finite."""
        exact = self.exact[name].astype(np.float64)
        length = _length(exact)
        if name.endswith(GRADIENT) and length < NOTHING * self.largest:
            length = self.largest
        found = np.linalg.norm(value.astype(np.float64) - exact) / max(length, 1e-300)
        return float(found) if np.isfinite(found) else float("inf")

    def __call__(self, name: str, ours: np.ndarray) -> Layer:
        original = self.distance(name, self.single[name])
        least = max(self.least, self.few[name.endswith(GRADIENT)]) if ours.size < FEW else self.least
        return Layer(name, self.distance(name, ours), original, self.tolerance or FACTOR * max(original, least))


def _length(x: np.ndarray) -> float:
    return float(np.linalg.norm(x.astype(np.float64)))


def _without_gradients(values: Values) -> Values:
    return {name: value for name, value in values.items() if not name.endswith(GRADIENT)}


def _as_ours(values: Values, names: Mapping[str, str], ours: Values, pair: Pair) -> Values:
    """The original's values under our names and in our shapes."""
    back = {name.removesuffix(GRADIENT): value for name, value in values.items() if name.endswith(GRADIENT)}
    found = {name: values[their] for name, their in names.items()}
    found |= {f"{name}{GRADIENT}": back[their] for name, their in names.items() if their in back}
    found |= {f"{name}{GRADIENT}": array for name, array in pair.translate(names, back).items()}
    found |= {f"{name}{GRADIENT}": array for name, array in back.items() if name.startswith("inputs.")}
    return {name: fitting for name in ours if name in found and (fitting := shaped(found[name], ours[name])) is not None}


def _feeding(name: str, parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters of the module that gives a value; of what a module is given, those that stand beside it outside of all modules."""
    if name.endswith(INPUT) or name == "embedding":
        parent = name.removesuffix(INPUT).rpartition(".")[0]
        return {key: array for key, array in parameters.items() if key.rpartition(".")[0] == parent}
    return {key: array for key, array in parameters.items() if key.startswith(f"{name}.")}


def versions() -> dict[str, Any]:
    """What computed both."""
    import torch

    return {
        "jax": jax.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "backend": jax.default_backend(),
        "machine": f"{platform.machine()} {platform.system()}",
        "python": platform.python_version(),
    }
