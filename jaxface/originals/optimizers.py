"""An optax optimizer beside a torch one: both are given the same gradients, and how far parameters have gone is compared step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxface.originals.certificate import Pair
from jaxface.originals.values import Values

SHAPES = {"matrix": (12, 16), "vector": (96,)}
"""Of the parameters: those that every optimizer decays, and those that some leave out."""


class Trace(NamedTuple):
    """What both are given: parameters at first, and gradients of every step, whose sizes reach below Adam's epsilon."""

    start: dict[str, np.ndarray]
    gradients: list[dict[str, np.ndarray]]


def made_trace(steps: int, seed: int = 0) -> Trace:
    """The same for the same seed."""
    random = np.random.default_rng(seed)

    def draw(spread: float, low: float) -> dict[str, np.ndarray]:
        return {n: (spread * random.normal(size=s) * 10 ** random.uniform(low, 0, s)).astype(np.float32) for n, s in SHAPES.items()}

    sizes = {name: 10 ** random.uniform(-9, 0, shape) for name, shape in SHAPES.items()}
    gradients = [{name: (x * sizes[name]).astype(np.float32) for name, x in draw(1.0, -0.5).items()} for _ in range(steps)]
    return Trace(draw(0.1, 0.0), gradients)


def optimizer_pair(ours: optax.GradientTransformation, theirs: Callable[[list[Any]], Any], steps: int = 20) -> Pair:
    """The pair whose values are how far the parameters are from where they were, `step.K.matrix` and `step.K.vector` after step K.

    Args:
      theirs: makes the torch optimizer of a list of parameters; or that and a schedule of its rates, which steps after it.
    """
    trace = made_trace(steps)

    def mine() -> Values:
        update = jax.jit(lambda gradients, state, parameters: _step(ours, gradients, state, parameters))
        parameters = jax.tree.map(jnp.asarray, trace.start)
        state, places = ours.init(parameters), []
        for gradients in trace.gradients:
            parameters, state = update(gradients, state, parameters)
            places.append(jax.tree.map(np.asarray, parameters))
        return _gone(trace, places)

    rates: list[float] = []

    def torchs(precision: str) -> Values:
        import torch

        dtype = getattr(torch, precision)
        parameters = {name: torch.nn.Parameter(torch.from_numpy(x.copy()).to(dtype)) for name, x in trace.start.items()}
        made = theirs(list(parameters.values()))
        optimizer, schedule = made if isinstance(made, tuple) else (made, None)
        groups.update(optimizer.param_groups[0])
        rates.clear()
        places = []
        for gradients in trace.gradients:
            rates.append(float(optimizer.param_groups[0]["lr"]))
            for name, parameter in parameters.items():
                parameter.grad = torch.from_numpy(gradients[name]).to(dtype)
            optimizer.step()
            if schedule is not None:
                schedule.step()
            places.append({name: x.detach().double().numpy().copy() for name, x in parameters.items()})
        return _gone(trace, places)

    groups: dict[str, Any] = {}
    tools = partial(dict, trials=lambda name: _trials(name, trace, rates, groups))
    return Pair(mine, torchs, {}, lambda: ({}, {}), lambda found, tensors: {}, tools)


def _step(optimizer: optax.GradientTransformation, gradients: Any, state: Any, parameters: Any) -> tuple[Any, Any]:
    updates, state = optimizer.update(gradients, state, parameters)
    return optax.apply_updates(parameters, updates), state


def _gone(trace: Trace, places: list[dict[str, np.ndarray]]) -> Values:
    return {f"step.{i + 1}.{name}": x.astype(np.float64) - trace.start[name] for i, place in enumerate(places) for name, x in place.items()}


class Adam(NamedTuple):
    """What AdamW is told, and what is known to go wrong when it is written anew; see `FAULTS`."""

    rates: list[float]
    betas: tuple[float, float]
    epsilon: float
    decay: float
    vectors: bool = True
    corrected: bool = True
    inside: bool = False
    coupled: bool = False
    unscaled: bool = False
    ahead: int = 0


FAULTS: Mapping[str, Callable[[Adam], Adam]] = {
    "AdamW as it is told": lambda a: a,
    **{f"epsilon {e:g}": lambda a, e=e: a._replace(epsilon=e) for e in (1e-6, 1e-7, 1e-8, 1e-10, 1e-12)},
    "epsilon below the root": lambda a: a._replace(inside=True),
    "no correction of the bias": lambda a: a._replace(corrected=False),
    "no weight decay of vectors": lambda a: a._replace(vectors=False),
    "no weight decay": lambda a: a._replace(decay=0.0),
    **{f"weight decay {d:g}": lambda a, d=d: a._replace(decay=d) for d in (1e-4, 1e-3, 1e-2, 0.05, 0.1)},
    "weight decay added to the gradient (Adam with L2)": lambda a: a._replace(coupled=True),
    "weight decay not times the rate": lambda a: a._replace(unscaled=True),
    "rates a step ahead": lambda a: a._replace(ahead=1),
    "rates a step behind": lambda a: a._replace(ahead=-1),
    "the first rate throughout": lambda a: a._replace(rates=a.rates[:1] * len(a.rates)),
    **{f"betas {x:g} and {y:g}": lambda a, b=(x, y): a._replace(betas=b) for x, y in ((0.9, 0.95), (0.9, 0.98), (0.9, 0.99), (0.9, 0.999))},
}


def _trials(name: str, trace: Trace, rates: list[float], groups: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    if {"betas", "eps", "weight_decay"} <= groups.keys():
        _, step, parameter = name.split(".")
        told = Adam(rates, groups["betas"], groups["eps"], groups["weight_decay"])
        for word, fault in FAULTS.items():
            yield word, partial(_adam, fault(told), trace, parameter, int(step))


def _adam(a: Adam, trace: Trace, name: str, steps: int) -> np.ndarray:
    """How far AdamW has brought a parameter after that many steps, in float64 (Loshchilov and Hutter 2019, algorithm 2)."""
    x = start = trace.start[name].astype(np.float64)
    decay = a.decay if a.vectors or x.ndim > 1 else 0.0
    first = second = np.zeros_like(x)
    for t in range(steps):
        g = trace.gradients[t][name].astype(np.float64) + (decay * x if a.coupled else 0.0)
        rate = a.rates[min(max(t + a.ahead, 0), len(a.rates) - 1)]
        first, second = (b * m + (1 - b) * v for b, m, v in zip(a.betas, (first, second), (g, g * g), strict=True))
        m, v = ((y / (1 - b ** (t + 1)) if a.corrected else y) for b, y in zip(a.betas, (first, second), strict=True))
        move = m / (np.sqrt(v + a.epsilon) if a.inside else np.sqrt(v) + a.epsilon)
        x = x - rate * move - (0.0 if a.coupled else decay * x * (1.0 if a.unscaled else rate))
    return x - start
