"""Why a value is another than the original's: what is known to go wrong when a model is ported is tried on the layer that departs first.

Another cause is a function of a departure that says what it found, or None:

    @CAUSES.register("my cause")
    def my_cause(departure): ...
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.special import erf

from jaxface.originals.gradients import GRADIENT
from jaxface.originals.hooks import INPUT
from jaxface.originals.values import Values
from jaxface.registry import Registry

NEAR = 1e-4
"""Relative distance at which a trial counts as what was computed."""


@dataclass(frozen=True)
class Departure:
    """The first value that is too far.

    Attributes:
      name: of the value.
      ours, exact: all values of both, the original's in float64.
      our_parameters, their_parameters: under our names.
      differing: of those that feed the value, how they differ.
      tools: functions of the model that trials need: `angles` (rotary angles [N, d / 2] by kind), `heads`, `images`, `patch`, `positions`;
        `trials`, a function of a value's name, gives pairs of a word and a function to try.
    """

    name: str
    ours: Values
    exact: Values
    our_parameters: Mapping[str, np.ndarray]
    their_parameters: Mapping[str, np.ndarray]
    differing: Mapping[str, str]
    tools: Mapping[str, Any]

    @property
    def module(self) -> str:
        """The module that gives or takes the value."""
        return self.name.removesuffix(INPUT)

    @property
    def before(self) -> str | None:
        """The value before it, of those that both have."""
        names = [name for name in self.ours if name in self.exact]
        return next((first for first, second in pairwise(names) if second == self.name), None)

    def explains(self, trials: Iterable[tuple[str, Callable[[], np.ndarray]]]) -> str | None:
        """`A here, B in the original` for the trials that give our value and theirs, if two different ones do."""
        here, there, made = self.ours[self.name].astype(np.float64), self.exact[self.name], []
        for word, trial in trials:
            value = trial()
            if value.shape == here.shape:
                made.append((word, _apart(value, here), _apart(value, there)))
        if not made:
            return None
        ours, theirs = min(made, key=lambda each: each[1]), min(made, key=lambda each: each[2])
        return f"{ours[0]} here, {theirs[0]} in the original" if ours[0] != theirs[0] and ours[1] < NEAR and theirs[2] < NEAR else None


CAUSES: Registry[Callable[[Departure], str | None]] = Registry("cause")


def likely_cause(departure: Departure) -> str | None:
    """What the first cause says that finds something; else which parameters differ."""
    found = (cause(departure) for cause in CAUSES.values())
    return next(filter(None, found), None)


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-300))


def parameter_differences(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Of the tensors that are not the same: how they differ."""
    found = {name: "is not in the original" for name in ours.keys() - theirs.keys() if np.any(ours[name])}
    found |= {name: "is missing here" for name in theirs.keys() - ours.keys() if np.any(theirs[name])}
    for name in sorted(ours.keys() & theirs.keys()):
        if (word := _difference(np.asarray(ours[name], np.float64), np.asarray(theirs[name], np.float64))) is not None:
            found[name] = word
    return found


def _difference(a: np.ndarray, b: np.ndarray) -> str | None:
    if a.shape != b.shape:
        return f"has shape {a.shape}, in the original {b.shape}"
    unlike = np.flatnonzero(a.ravel() != b.ravel())
    if not len(unlike):
        return None
    if a.ndim == 2 and a.shape[0] == a.shape[1] and np.array_equal(a, b.T):
        return "is transposed"
    if not np.any(a) or not np.any(b):
        return f"is zero {'here' if not np.any(a) else 'in the original'}"
    if np.array_equal(a, -b):
        return "has the other sign"
    if len(unlike) <= max(1, a.size // 1000):
        place = np.unravel_index(unlike[0], a.shape)
        at = ", ".join(map(str, place))
        return f"differs in {len(unlike)} of {a.size} values, first at [{at}]: {a[place]:.6g} here, {b[place]:.6g} in the original"
    factor = float(np.vdot(a, b) / np.vdot(b, b))
    if np.allclose(a, factor * b, rtol=1e-5, atol=0):
        return f"is {factor:.6g} times the original's"
    if np.array_equal(np.sort(a.ravel()), np.sort(b.ravel())):
        return "has the same values in another order"
    return f"differs by {_apart(a, b):.2g} of its length"


@CAUSES.register("parameters")
def _parameters(departure: Departure) -> str | None:
    return "; ".join(f"{name} {word}" for name, word in departure.differing.items()) or None


@CAUSES.register("normalisation")
def _normalisation(departure: Departure) -> str | None:
    """Epsilon, and root mean square for the variance."""
    x, scale = departure.ours.get(departure.module + INPUT), departure.our_parameters.get(f"{departure.module}.scale")
    if x is None or scale is None or departure.name.endswith(INPUT):
        return None
    x, scale = x.astype(np.float64), scale.astype(np.float64)
    bias = departure.our_parameters.get(f"{departure.module}.bias", np.zeros(1)).astype(np.float64)
    mean = x.mean(-1, keepdims=True)

    def normed(centre: Any, epsilon: float) -> np.ndarray:
        return (x - centre) / np.sqrt(((x - centre) ** 2).mean(-1, keepdims=True) + epsilon) * scale + bias

    # epsilons are told apart by less than NEAR where variances are large: the nearest is named, if it is no other's neighbour
    trials = [(f"epsilon {epsilon:g}", epsilon, mean) for epsilon in (1e-12, 1e-8, 1e-6, 1e-5, 1e-3)]
    trials += [("no mean taken away", epsilon, 0.0) for epsilon in (1e-6, 1e-5)]
    return departure.explains((word, lambda e=epsilon, c=centre: normed(c, e)) for word, epsilon, centre in trials)


ACTIVATIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "exact GELU": lambda x: x * 0.5 * (1 + erf(x / math.sqrt(2))),
    "tanh GELU": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "QuickGELU": lambda x: x / (1 + np.exp(-1.702 * x)),
    "SiLU": lambda x: x / (1 + np.exp(-x)),
    "ReLU": lambda x: np.maximum(x, 0),
    "no activation": lambda x: x,
}


@CAUSES.register("activation")
def _activation(departure: Departure) -> str | None:
    before = departure.ours.get(departure.before or "")
    if before is None or before.shape != departure.ours[departure.name].shape:
        return None
    x = before.astype(np.float64)
    return departure.explains((word, lambda f=function: f(x)) for word, function in ACTIVATIONS.items())


@CAUSES.register("attention")
def _attention(departure: Departure) -> str | None:
    """The scale, and which channels turn together by which angles."""
    qkv, heads = departure.ours.get(departure.before or ""), departure.tools.get("heads")
    shape = departure.ours[departure.name].shape
    if qkv is None or not heads or qkv.shape != (*shape[:-1], 3 * shape[-1]):
        return None
    parts = qkv.astype(np.float64).reshape(*shape[:-1], 3, heads, -1)
    q, k, v = (np.moveaxis(parts[..., i, :, :], -2, -3) for i in range(3))
    kinds = {"no rotary positions": None, **departure.tools.get("angles", {})}

    def attend(angles: np.ndarray | None, halves: bool, scale: float) -> np.ndarray:
        a, b = (x if angles is None else _turned(x, angles, halves) for x in (q, k))
        scores = scale * a @ b.swapaxes(-1, -2)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return np.moveaxis(weights / weights.sum(-1, keepdims=True) @ v, -3, -2).reshape(shape)

    usual = q.shape[-1] ** -0.5
    trials = [
        (f"{kind}{', channels paired in halves' if halves else ''}", angles, halves, usual)
        for kind, angles in kinds.items()
        for halves in (False, True)
    ]
    trials += [(f"{kind}, scores not scaled", angles, False, 1.0) for kind, angles in kinds.items()]
    return departure.explains((word, lambda a=a, h=h, s=s: attend(a, h, s)) for word, a, h, s in trials)


def _turned(x: np.ndarray, angles: np.ndarray, halves: bool) -> np.ndarray:
    first, second = np.split(x, 2, -1) if halves else (x[..., 0::2], x[..., 1::2])
    cos, sin = np.cos(angles), np.sin(angles)
    turned = first * cos - second * sin, second * cos + first * sin
    return np.concatenate(turned, -1) if halves else np.stack(turned, -1).reshape(x.shape)


@CAUSES.register("pixels")
def _pixels(departure: Departure) -> str | None:
    """The order of the channels, rows for columns, and by which means and deviations images were normalised."""
    images, patch = departure.tools.get("images"), departure.tools.get("patch")
    kernel = departure.our_parameters.get(f"{departure.module}.kernel")
    if images is None or kernel is None or not patch or kernel.shape[0] != 3 * patch * patch:
        return None
    bias = departure.our_parameters.get(f"{departure.module}.bias", np.zeros(1))

    def embedded(images: np.ndarray) -> np.ndarray:
        b, h, w, _ = images.shape
        cut = images.astype(np.float64).reshape(b, h // patch, patch, w // patch, patch, 3).swapaxes(2, 3)
        return cut.reshape(b, -1, 3 * patch * patch) @ kernel.astype(np.float64) + bias

    orders = {"channels as given": images, "channels in reverse (BGR)": images[..., ::-1], "rows for columns": images.swapaxes(1, 2)}
    orders |= {f"{word} by the mean and deviation of {word}": value for word, value in departure.tools.get("pixels", {}).items()}
    return departure.explains((word, lambda x=value: embedded(x)) for word, value in orders.items())


@CAUSES.register("resampling")
def _resampling(departure: Departure) -> str | None:
    """By which filter positions were brought to another grid."""
    positions = departure.tools.get("positions", {})
    if "positions" not in departure.our_parameters or not positions:
        return None
    ours = departure.ours[departure.name].astype(np.float64)
    usual = positions["as here"]
    return (
        departure.explains((word, lambda p=value: ours - usual + p) for word, value in positions.items())
        if ours.shape[1:] == usual.shape
        else None
    )


@CAUSES.register("trials")
def _trials(departure: Departure) -> str | None:
    """What the pair itself knows to try on a value: an optimizer's settings."""
    trials = departure.tools.get("trials")
    return None if trials is None else departure.explains(trials(departure.name))


@CAUSES.register("vector")
def _vector(departure: Departure) -> str | None:
    """A vector that is the same for all rows: a bias that is not added."""
    apart = departure.exact[departure.name] - departure.ours[departure.name]
    rows = apart.reshape(-1, apart.shape[-1])
    mean = rows.mean(0)
    if len(rows) == 1 or _apart(rows, np.broadcast_to(mean, rows.shape)) > 1e-3:
        return None
    for name, array in {**departure.our_parameters, **departure.their_parameters}.items():
        if array.shape == mean.shape and min(_apart(mean, array), _apart(-mean, array)) < 1e-3:
            return f"{name} is {'missing here' if _apart(mean, array) < 1e-3 else 'missing in the original'}"
    return "the same vector is added to every row in one of them"


@CAUSES.register("way back")
def _way_back(departure: Departure) -> str | None:
    """A gradient that does not arrive, or by one of several ways alone."""
    if not departure.name.endswith(GRADIENT):
        return None
    ours, exact = departure.ours[departure.name].astype(np.float64), departure.exact[departure.name]
    for word, value in (("here", ours), ("in the original", exact)):
        if not np.any(value) and np.any(ours - exact):
            return f"no gradient arrives {word}"
    for word, value, values in (("here", ours, departure.ours), ("in the original", exact, departure.exact)):
        for name, other in values.items():
            alike = name.endswith(GRADIENT) and name != departure.name and other.shape == value.shape
            if alike and _apart(value, other.astype(np.float64)) < NEAR:
                return f"what comes from {name.removesuffix(GRADIENT)} is all that arrives {word}"
    return None


@CAUSES.register("factor")
def _factor(departure: Departure) -> str | None:
    """One factor for all, or one for each channel."""
    ours, exact = departure.ours[departure.name].astype(np.float64), departure.exact[departure.name]
    factor = float(np.vdot(exact, ours) / max(np.vdot(exact, exact), 1e-300))
    if _apart(ours, factor * exact) < NEAR:
        return f"ours is {factor:.6g} times the original's"
    axes = tuple(range(ours.ndim - 1))
    each = (exact * ours).sum(axes) / np.maximum((exact * exact).sum(axes), 1e-300)
    return "each channel has a factor of its own in one of them" if _apart(ours, each * exact) < NEAR else None


@CAUSES.register("order")
def _order(departure: Departure) -> str | None:
    """The same numbers in another order."""
    ours, exact = departure.ours[departure.name].astype(np.float64), departure.exact[departure.name]
    if _apart(np.sort(ours.ravel()), np.sort(exact.ravel())) > NEAR:
        return None
    by_channel = _apart(np.sort(ours, -1), np.sort(exact, -1)) < NEAR
    return "the same channels in another order" if by_channel else "the same numbers in another order of rows"
