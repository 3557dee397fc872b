"""Whole training runs beside one another: this project's own step, and timm with PEFT and torch, from the same start on the same batches.

Two programs that round differently part in the end, however equal they are: what rounding adds grows with every step. Both runs in
float64 are the witness: where those stay together and the float32 runs do not, it is rounding that parted them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.adapters.low_rank import column_norms_squared
from jaxface.adapters.methods import get_method, options_for
from jaxface.adapters.options import AdapterOptions
from jaxface.adapters.peft_format import MAGNITUDE, MODULES
from jaxface.data.tasks import get_task
from jaxface.devices import replicate, shard, unreplicate
from jaxface.errors import UserError
from jaxface.models.encoder import Encoder
from jaxface.models.heads import torch_heads
from jaxface.models.tree import flatten
from jaxface.objectives.balancing import get_balancer
from jaxface.originals.reference import import_torch, timm_vision
from jaxface.originals.values import parameters_of
from jaxface.runs.base import Base
from jaxface.runs.config import Config, HeadOptions, MethodOptions, OptimizerOptions
from jaxface.runs.model import make_parts
from jaxface.runs.parts import Parts
from jaxface.training.optimizer import make_optimizer
from jaxface.training.step import make_step, start_state
from weights_convert.checkpoint import layout_tensors
from weights_convert.towers import Towers

TASKS = ("age", "emotion", "gender")
TOLERANCES = {"float32": 1e-4, "float64": 1e-9}
"""How far losses may be apart, as a share of the original's."""
EVERY = 10
"""Of so many batches one has no label of one of the tasks."""

RUNS = {
    "lp": ("lp", 1.0),
    "ap": ("ap", 1.0),
    "ft4": ("ft4", 1.0),
    "lora": ("lora", 1.0),
    "lora+": ("lora", 6.0),
    "dora": ("dora", 6.0),
    "full": ("full", 1.0),
}
"""What is run: a method, and the ratio of B's rate to A's."""


@dataclass(frozen=True)
class Course:
    """Two runs in one precision, step by step.

    Attributes:
      losses: ours and the original's.
      norms: of the gradients.
      parameters: how far what trains is apart, over how far the original's has come from where it started.
    """

    losses: list[tuple[float, float]]
    norms: list[tuple[float, float]]
    parameters: list[float]

    def apart(self) -> np.ndarray:
        """|ours - theirs| / |theirs| of the losses, infinite for what is not finite: [steps]"""
        ours, theirs = np.asarray(self.losses, np.float64).T
        return _share(ours, theirs)


@dataclass(frozen=True)
class Parity:
    """What came of a method.

    Attributes:
      method: a name of `RUNS`.
      verdict: equal, or differs.
      trained: numbers that train, ours and the original's.
      parted: the first step, from 1, whose float32 losses are further apart than `TOLERANCES`; None where none is.
      reason: why they parted, and whether that is rounding.
      courses: by precision.
    """

    method: str
    verdict: str
    trained: tuple[int, int]
    parted: int | None
    reason: str | None
    courses: Mapping[str, Course]

    def to_json(self) -> dict[str, Any]:
        """Plain values; docs/howto/compare.md says what they mean."""
        largest = {precision: float(course.apart().max()) for precision, course in self.courses.items()}
        return asdict(self) | {"largest": largest, "parameters": {name: course.parameters[-1] for name, course in self.courses.items()}}


def _share(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    found = np.abs(ours - theirs) / np.maximum(np.abs(theirs), 1e-300)
    return np.where(np.isfinite(found), found, np.inf)


def made_batches(photos: np.ndarray, steps: int, batch_size: int, seed: int = 0) -> list[dict[str, Any]]:
    """Batches of photos uint8 [P, S, S, 3] in a drawn order, with drawn labels of three tasks, a third of them missing."""
    random = np.random.default_rng(seed)
    count = len(photos)
    labels = {task: random.integers(0, get_task(task).num_classes, count) for task in TASKS}
    labels = {task: np.where(random.random(count) < 1 / 3, -1, values).astype(np.int32) for task, values in labels.items()}
    order = np.concatenate([random.permutation(count) for _ in range(-(-steps * batch_size // count))])
    batches = []
    for step in range(steps):
        rows = order[step * batch_size : (step + 1) * batch_size]
        mine = {task: values[rows].copy() for task, values in labels.items()}
        if step % EVERY == EVERY - 1:
            mine[TASKS[step // EVERY % len(TASKS)]][:] = -1
        batches.append({"image": photos[rows], "labels": mine})
    return batches


class Ours:
    """This project's own training, in float32 or float64; `original_parameters` names what trains as timm, PEFT and torch do."""

    def __init__(self, config: Config, parts: Parts, steps: int, precision: str) -> None:
        self.parts = parts = _in_precision(parts, precision)
        balancer, optimizer = get_balancer(config.balancing), make_optimizer(config.optimizer, parts.groups, steps)
        self._step = make_step(parts.structure, config.tasks, balancer, optimizer)
        state = start_state(parts.trained, parts.statistics, config.tasks, balancer, optimizer)
        self._state = replicate(jax.tree.map(lambda x: _cast(x, precision), state))
        self._frozen = replicate(parts.frozen)

    def step(self, batch: Mapping[str, Any]) -> tuple[float, float]:
        """The loss and the gradients' norm of a batch."""
        self._state, metrics = self._step(self._state, self._frozen, shard(batch))
        return float(metrics["loss"][0]), float(metrics["gradient_norm"][0])

    def parameters(self) -> dict[str, np.ndarray]:
        """Every array of the model and of the loss balancer, by torch's names."""
        trained = unreplicate(self._state.trained)
        model = self.parts.structure.build(_numpy(self.parts.frozen), _numpy(self.parts.statistics), trained)
        heads = {f"heads.{name}": array for name, array in torch_heads(model).items()}
        variances = {name.replace("balance.", "log_variances."): array for name, array in trained.items() if name.startswith("balance.")}
        return _timm_names(model.encoder) | heads | variances


def _numpy(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in arrays.items()}


def _cast(array: Any, precision: str) -> Any:
    return array.astype(precision) if array.dtype == np.float32 else array


def _in_precision(parts: Parts, precision: str) -> Parts:
    """The same model, all that it computes in another precision."""
    model = parts.build()
    model.encoder.dtype, model.encoder.residual = jnp.dtype(precision), None
    arrays = {field: {n: _cast(x, precision) for n, x in getattr(parts, field).items()} for field in ("trained", "statistics", "frozen")}
    for name in [name for name in arrays["frozen"] if name.endswith(".base_norms")]:
        arrays["frozen"][name] = column_norms_squared(jnp.asarray(arrays["frozen"][name.removesuffix("_norms")]))
    return replace(parts, structure=flatten(model)[1], **arrays)


def _timm_names(encoder: Encoder) -> dict[str, np.ndarray]:
    """An encoder's arrays as timm's and PEFT's: `encoder.blocks.0.attn.qkv.weight`, `encoder.blocks.0.attn.qkv.lora_A.weight`."""
    found, plain = {}, {}
    for name, array in parameters_of(encoder).items():
        linear, _, word = name.partition(".kernel.")
        number = linear.split(".")[1] if linear.startswith("blocks.") else ""
        module = MODULES.get(linear.replace(f".{number}.", ".{i}.", 1) if number else linear, "").format(i=number)
        if word in ("a", "b"):
            found[f"encoder.{module}.lora_{word.upper()}.weight"] = array.T
        elif word == "magnitude":
            found[f"encoder.{module}.{MAGNITUDE}"] = array
        elif word in ("", "base"):  # and no norms of it
            plain[f"visual.{name.removesuffix('.base')}"] = array
    return found | {f"encoder.{name}": array for name, array in layout_tensors("timm", Towers(encoder.config), plain).items()}


def configuration(method: str, steps: int, rank: int) -> Config:
    """The run of a method: the thesis's rates and decay, a warm-up and a cosine, no dropout."""
    name, plus = RUNS[method]
    return Config(
        method=MethodOptions(name, options_for(name, AdapterOptions(rank=rank))),
        tasks=TASKS,
        head=HeadOptions(dropout=0.0),
        optimizer=OptimizerOptions(plus_ratio=plus, warmup_steps=steps // 10, cosine=True),
    )


def run_both(config: Config, encoder: Encoder, parts: Parts, batches: Sequence[Mapping[str, Any]], precision: str) -> tuple[Course, Any]:
    """Both runs over the batches, step by step side by side; and the numbers that train, ours and the original's."""
    torch = import_torch("timm.layers")[0]
    from jaxface.originals.torch_training import Model, Trainer, adapted

    steps, options = len(batches), config.optimizer
    with jax.enable_x64(precision == "float64"):
        ours = Ours(config, parts, steps, precision)
        start = ours.parameters()
        base = timm_vision(encoder.config)
        base.load_state_dict({name: torch.from_numpy(np.array(x)) for name, x in _base(encoder).items()})
        torch.manual_seed(0)
        classes = {task: get_task(task).num_classes for task in config.tasks}
        method = get_method(config.method.name)
        timm = adapted(base, method.name, config.method.options.rank)
        model = Model(timm, encoder.config.features, classes, batch_norm=method.batch_norm, dropout=0.0)
        for name, parameter in model.named_parameters():
            if name.endswith("head.bias"):  # which timm's projection has, and no Perception Encoder
                parameter.requires_grad_(False)
        rates = {name: getattr(options, name) for name in ("backbone", "pool", "head")}
        factors = [float(options.factor_at(step, steps)) for step in range(steps)]
        theirs = Trainer(model, rates, options.plus_ratio, options.weight_decay, factors, getattr(torch, precision))
        theirs.load(start)
        course = Course([], [], [])
        for batch in batches:
            pairs = list(zip(ours.step(batch), theirs.step(batch), strict=True))
            course.losses.append(pairs[0])
            course.norms.append(pairs[1])
            course.parameters.append(_parameters_apart(ours.parameters(), theirs.parameters(), start))
        numbers = sum(x.size for x in ours._state.trained.values()), sum(x.size for x in theirs.parameters().values())
    return course, numbers


def _base(encoder: Encoder) -> dict[str, np.ndarray]:
    return {name.removeprefix("encoder."): np.asarray(x) for name, x in _timm_names(encoder).items()}


def _parameters_apart(ours: Mapping[str, Any], theirs: Mapping[str, np.ndarray], start: Mapping[str, Any]) -> float:
    apart = sum(float(np.sum(np.square(np.asarray(ours[name], np.float64) - x))) for name, x in theirs.items())
    moved = sum(float(np.sum(np.square(x.astype(np.float64) - start[name]))) for name, x in theirs.items())
    return float(np.sqrt(apart / max(moved, 1e-300)))


def compare_training(
    encoder: Encoder,
    photos: np.ndarray,
    steps: int,
    *,
    methods: Sequence[str] = tuple(RUNS),
    batch_size: int = 8,
    rank: int = 8,
    told: Callable[[str], None] = lambda method: None,
) -> list[Parity]:
    """Runs each method here and in timm, PEFT and torch, in float32 and in float64.

    Args:
      encoder: in float32; images have its own size.
      photos: uint8 [P, S, S, 3].
      told: is called with each method before it runs.

    Raises UserError for an encoder that has no attention pool, or whose size is not the photos'.
    """
    if encoder.pool is None:
        raise UserError("--train: the encoder has no attention pool, which these methods train; expected a Perception Encoder's core")
    batches, found = made_batches(photos, steps, batch_size), []
    for method in methods:
        told(method)
        config = configuration(method, steps, rank)
        parts = make_parts(config, Base(encoder, None, "", None), jnp.float32)
        courses = {}
        for precision in TOLERANCES:
            courses[precision], numbers = run_both(config, encoder, parts, batches, precision)
        found.append(judged(method, numbers, courses))
    return found


def judged(method: str, trained: tuple[int, int], courses: Mapping[str, Course]) -> Parity:
    """The verdict: float64 runs together to 1e-9; float32 runs to 1e-4, or as near to the float64 runs as the original's own is."""
    single, double = courses["float32"], courses["float64"]
    beyond = np.flatnonzero(single.apart() > TOLERANCES["float32"])
    parted = int(beyond[0]) + 1 if len(beyond) else None
    witness = np.flatnonzero(double.apart() > TOLERANCES["float64"])
    if trained[0] != trained[1]:
        return Parity(method, "differs", trained, parted, f"{trained[0]} numbers train here, {trained[1]} in the original", courses)
    if len(witness):
        at = int(witness[0])
        reason = f"the float64 runs part, too, at step {at + 1}: losses {double.losses[at][0]:.12g} and {double.losses[at][1]:.12g}"
        return Parity(method, "differs", trained, parted or at + 1, reason, courses)
    if parted is None:
        return Parity(method, "equal", trained, None, None, courses)
    exact = np.asarray(double.losses)[:, 1]
    ours, theirs = (_share(np.asarray(single.losses)[:, side], exact).max() for side in (0, 1))
    reason = f"rounding: from the float64 run ours is at most {ours:.1e} away, the original's own float32 run {theirs:.1e}"
    return Parity(method, "equal" if ours <= 2 * max(theirs, TOLERANCES["float32"]) else "differs", trained, parted, reason, courses)
