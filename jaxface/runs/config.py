"""What a run is: typed values, checked once. A file in `configs/` holds one `config`; the command line changes single values of it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import field, replace
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np
import optax
import tyro

from jaxface.adapters.methods import METHODS, Group, get_method, options_for, require_taken
from jaxface.adapters.options import AdapterOptions
from jaxface.cluster import ClusterOptions
from jaxface.data.augment import Augment
from jaxface.data.synthetic import DrawnSet
from jaxface.data.tasks import TASKS
from jaxface.errors import UserError
from jaxface.imports import remember, run_file
from jaxface.models.heads import TOKENS
from jaxface.models.variants import VARIANTS
from jaxface.objectives.balancing import BALANCERS
from jaxface.objectives.losses import LOSSES
from jaxface.ranges import Count, Inside, Items, Known, Like, Name, Place, Range, Seed, Word, ranged
from jaxface.registry import Registry

_PACKAGE = Path(__file__).parents[1]
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
"""The configurations that come with the package: inside it where it is installed, beside it in the repository."""

RANDOM = "random"
"""The name of weights that starts an encoder from random numbers."""
MOST_EPOCHS = 10**6
Rate = Annotated[float, Range(above=0, high=100)]
"""A learning rate."""


@ranged("encoder.")
class EncoderOptions:
    """Which encoder.

    Attributes:
      weights: a checkpoint in any layout, or a run folder; the word "random" trains from nothing.
      variant: the shape to start from random numbers; a checkpoint knows its own, or says of which variants it may be.
      image_size: side in pixels of the input, 0 for the encoder's own.
      remat: what a block keeps for its backward pass: all ("none"), the matrix products ("products") or its input ("full").
      precision: of activations and frozen kernels; "auto" takes bf16 on accelerators and fp32 on CPUs.
      base: the format of the frozen kernels of the blocks and the pool: as they are ("full"), "int8", or QLoRA's 4-bit "nf4".
      loop: blocks as one program that runs once for each ("scan"), or as a program each, which moves fewer bytes on a GPU and takes longer
        to compile ("unrolled"); "auto" unrolls blocks that train on GPUs.
      attention: a kernel of `jaxface.kernels` by name; "auto" takes what suits the device and the shape.
      kernels: kernels of the other operations (normalization, adapted_product, mlp, patch_embedding), as OPERATION=NAME.
    """

    weights: Annotated[str | None, Place()] = None
    variant: Annotated[str, Known(VARIANTS)] = "PE-Core-L14-336"
    image_size: Annotated[int, Range(0, 8192)] = 0
    remat: Literal["none", "products", "full"] = "products"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    base: Literal["full", "int8", "nf4"] = "full"
    attention: Name = "auto"
    kernels: Annotated[tuple[str, ...], Word(r"[a-z_]+=[\w.-]+", "OPERATION=NAME, such as normalization=mine")] = ()
    loop: Literal["auto", "scan", "unrolled"] = "auto"


@ranged("head.")
class HeadOptions:
    """The classifiers (thesis, section 3.3).

    Attributes:
      deep: dropout, linear, GELU, linear; otherwise dropout and one linear.
      dropout: the thesis does not say how much; 0.1 is this project's choice.
      tokens: what they read of an encoder without an attention pool: the mean of the "patches", as the literature does, the "class"
        token, "both" one behind the other, or the mean of "all", the class token among them.
    """

    deep: bool = True
    dropout: Annotated[float, Range(0, below=1)] = 0.1
    tokens: Annotated[str, Known(TOKENS)] = "patches"


@ranged("data.")
class DataOptions:
    """Where the images come from.

    Attributes:
      sets: folders written by `jaxface.prepare`.
      drawn: drawn faces instead, where no set is named.
      sampling: "shuffle", or "balanced": rare classes more often (thesis, section 3.2).
      augment: flip, color jitter, affine, erasing on training images.
      changes: how strong those are, and how many of RandAugment's operations come before them.
      workers: processes that decode and augment training images; 0 does it in threads of this one, as evaluation always does.
      cache_features: encode each image once where no later pass could see other features: the encoder is frozen (LP) and nothing
        augments. With augmentation every epoch has other pixels, and the encoder runs on each of them.
    """

    sets: Annotated[tuple[str, ...], Place(), Items(once=True)] = ()
    drawn: Annotated[DrawnSet | None, tyro.conf.Fixed] = None
    sampling: Literal["shuffle", "balanced"] = "balanced"
    augment: bool = True
    changes: Augment = field(default_factory=Augment)
    workers: Annotated[int, Range(0, 1024)] = 0
    cache_features: bool = True


@ranged("method.")
class MethodOptions:
    """How the encoder is adapted: a name of `jaxface.adapters.methods`, and what it may be told."""

    name: Annotated[str, Known(METHODS)] = "dora"
    options: AdapterOptions = field(default_factory=AdapterOptions)


@ranged("optimizer.")
class OptimizerOptions:
    """AdamW's settings; the defaults are the thesis's (section 3.1, rates: 3.3 to 3.6).

    Attributes:
      backbone: learning rate of what trains in the blocks.
      pool: learning rate of what trains in the attention pool.
      head: learning rate of the heads, their batch norms and the loss balancer.
      plus_ratio: LoRA+'s lambda: B takes this times A's rate.
      weight_decay: decoupled; parameters of one axis (norms, biases, magnitudes) are not decayed where `decay_vectors` is off.
      decay_vectors: decay one-axis parameters too, as torch's AdamW does by default.
      plateau_factor: the rates are multiplied by this when the plateau lasts.
      plateau_patience: epochs without a better validation loss before that.
      early_stop: epochs without improvement before training ends.
      warmup_steps: steps over which all rates rise in a line; the first has 1 / (warmup_steps + 1) of them.
      clip_norm: gradients are scaled down to this global norm; 0 leaves them.
      cosine: lower the rates along a half cosine to zero behind the last step, and never on plateaus.
      average: decay of a moving average of what trains and of batch statistics, which is validated, kept and tested in their place; 0 for
        none.
    """

    backbone: Rate = 1e-5
    pool: Rate = 1e-4
    head: Rate = 1e-4
    plus_ratio: Annotated[float, Range(above=0, high=1000)] = 6.0
    weight_decay: Annotated[float, Range(0, 100)] = 0.01
    decay_vectors: bool = True
    plateau_factor: Annotated[float, Range(above=0, high=1)] = 0.1
    plateau_patience: Annotated[int, Range(0, MOST_EPOCHS)] = 5
    early_stop: Annotated[int, Range(1, MOST_EPOCHS)] = 10
    warmup_steps: Annotated[int, Range(0, 10**7)] = 0
    clip_norm: Annotated[float, Range(0, 1e6)] = 0.0
    cosine: bool = False
    average: Annotated[float, Range(0, below=1)] = 0.0

    def __post_init__(self) -> None:
        for name in ("plateau_factor", "plateau_patience") if self.cosine else ():
            if getattr(self, name) != getattr(OptimizerOptions, name):
                raise UserError(f"optimizer.{name} {getattr(self, name)}: a cosine has no plateaus; leave it or the cosine out")

    def rate(self, group: Group) -> float:
        """The learning rate of a group. Raises UserError for an unknown rate name."""
        if group.rate not in ("backbone", "pool", "head"):
            raise UserError(f"group {group.pattern!r} asks for the learning rate {group.rate!r}; known: backbone, pool, head")
        return getattr(self, group.rate) * (self.plus_ratio if group.plus else 1.0)

    def schedule(self, total_steps: int) -> optax.Schedule:
        """The factor on all rates at a step, without the plateau's. Raises UserError for a warm-up that leaves no step to the cosine."""
        if self.cosine and self.warmup_steps >= total_steps:
            raise UserError(f"optimizer.warmup_steps {self.warmup_steps}: expected fewer than the run's {total_steps} steps")
        return lambda update: self.factor_at(jnp.asarray(update, float), total_steps, jnp)

    def factor_at(self, update: Any, total_steps: int, xp: ModuleType = np) -> Any:
        """The factor on all rates in the update after the first `update` ones, without the plateau's; computed by NumPy or `xp`."""
        rise = xp.minimum(1.0, (update + 1) / (self.warmup_steps + 1))
        if not self.cosine:
            return rise
        share = xp.clip((update - self.warmup_steps) / max(total_steps - self.warmup_steps, 1), 0.0, 1.0)
        return rise * 0.5 * (1 + xp.cos(math.pi * share))


def _configuration(value: Any) -> None:
    if not isinstance(value, Config | None):
        raise UserError("expected a configuration")


@ranged()
class Config:
    """A run.

    Attributes:
      name: of the run folder below `out`.
      out: folder of run folders.
      tasks: what is predicted.
      losses: of single tasks, where not cross_entropy: coral (ordinal regression), soft (labels smeared over neighbours).
      balancing: how the losses of several tasks become one: uw, ema, dwa, gradnorm, fixed.
      batch_size: over all devices of all hosts; "auto" takes the largest that fits into their memory.
      accumulate: pieces that a device's part of the batch is computed in, where memory is short.
      epochs: at most.
      seed: of everything that is drawn at random.
      checkpoint_minutes: time between two saves of the latest state; it is saved at every epoch's end as well.
      checkpoints: where the states are kept, in a folder of the run's name: any place that Orbax can write, such as gs://BUCKET/STATES; in
        the run folder if not given.
      log_every: steps between two lines of metrics.
      before: test the starting model, too (for a run that starts from another run's heads).
      pixels: measure a linear model on pixels for comparison.
      report: write `report.html` at the end.
      bad_steps: steps in a row without a finite loss and gradient that end the run; each is skipped.
      cluster: several processes.
      seeds: one run for each in place of `seed`, in a folder of its own below this one's.
      grid: one run for each combination, as in `balancing=uw,ema optimizer.backbone=1e-5,1e-4`: an option of this list and its values.
      after: the run that this one starts from; made first if it is not there.
      imports: SHA-256 of the files that `--import` ran for it, by name: whoever opens the run has to name them, too.
    """

    name: Annotated[str, Inside()] = "run"
    out: Annotated[str, Place()] = "runs"
    tasks: Annotated[tuple[str, ...], Known(TASKS), Items(least=1, once=True)] = ("age", "gender", "emotion")
    encoder: EncoderOptions = field(default_factory=EncoderOptions)
    method: MethodOptions = field(default_factory=MethodOptions)
    head: HeadOptions = field(default_factory=HeadOptions)
    data: DataOptions = field(default_factory=DataOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    losses: dict[Annotated[str, Known(TASKS)], Annotated[str, Known(LOSSES)]] = field(default_factory=dict)
    balancing: Annotated[str, Known(BALANCERS)] = "uw"
    batch_size: Count | Literal["auto"] = 128
    accumulate: Count = 1
    epochs: Annotated[int, Range(1, MOST_EPOCHS)] = 100
    seed: Seed = 0
    checkpoint_minutes: Annotated[float, Range(0, 10_000)] = 10.0
    checkpoints: Annotated[str | None, Place(urls=True)] = None
    log_every: Annotated[int, Range(1, 10**6)] = 10
    before: bool = False
    pixels: bool = False
    report: bool = False
    bad_steps: Annotated[int, Range(1, 10_000)] = 5
    cluster: ClusterOptions = field(default_factory=ClusterOptions)
    seeds: Annotated[tuple[Seed, ...], Items(once=True)] = ()
    grid: Annotated[tuple[str, ...], Word(r"[^\s=,]+=[^,]+(,[^,]+)*", "OPTION=VALUE,VALUE..., as in balancing=uw,ema")] = ()
    after: Annotated[Any, Like(_configuration), tyro.conf.Suppress] = None
    imports: Annotated[dict[Name, Annotated[str, Word(r"[0-9a-f]{64}", "a SHA-256")]], tyro.conf.Suppress] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for task, name in self.losses.items():
            if task not in self.tasks:
                raise UserError(f"losses {task} {name}: the run has no task {task}, only {' '.join(self.tasks)}")

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.out) / self.name

    @property
    def states(self) -> Path | str:
        """Where its checkpoints are."""
        return self.folder / "checkpoints" if self.checkpoints is None else f"{self.checkpoints.rstrip('/')}/{self.name}"


def with_method(config: Config, words: Sequence[str]) -> Config:
    """The configuration with the method that the words of a command line name, and those of its options that this one takes."""
    pairs = itertools.pairwise([*words, ""])
    names = [word.partition("=")[2] or following for word, following in pairs if word.partition("=")[0] == "--method.name"]
    if not names or names[-1] not in METHODS:
        return config
    return replace(config, method=MethodOptions(names[-1], options_for(names[-1], config.method.options)))


def check_run(config: Config) -> None:
    """Raises UserError for what a run would ignore, or could not learn from."""
    method = get_method(config.method.name)
    require_taken(method.name, replace(config.method.options, num_tasks=1))
    count = config.method.options.num_tasks
    if count not in (1, len(config.tasks)):
        raise UserError(f"adapter num_tasks {count}: leave it out; the run has {len(config.tasks)} tasks")
    if config.batch_size != "auto" and method.batch_norm and config.batch_size // config.accumulate < 2:
        raise UserError(
            f"batch_size {config.batch_size}, accumulate {config.accumulate}: the heads of {method.name} have batch norm, which needs at "
            "least 2 images at a time; choose a larger batch, fewer pieces, or method lp"
        )


def load_configs(path: str | Path) -> tuple[Config, ...]:
    """The value `config` of a Python file, or its `configs`, several experiments that belong together.

    Where there is no file `configs/NAME.py` or NAME, the one of that name that comes with the package is taken.

    Raises UserError if there is no such file or neither value in it.
    """
    path = Path(path)
    if not path.is_file() and str(path.parent) in (".", "configs") and (CONFIGS / path.with_suffix(".py").name).is_file():
        path = CONFIGS / path.with_suffix(".py").name  # one of those that travel with the package
    if not path.is_file():
        known = sorted(str(p) for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise UserError(f"no configuration {path}" + (f"; in {path.parent}: {', '.join(Path(p).name for p in known)}" if known else ""))
    before = Registry.added
    module = run_file(path, f"jaxface_config_{path.stem}")
    if Registry.added > before:  # who opens the run will need what the file has registered
        remember(path)
    configs: tuple[Any, ...] = tuple(getattr(module, "configs", None) or (getattr(module, "config", None),))
    for config in configs:
        if not isinstance(config, Config):
            raise UserError(f"{path}: expected a value `config = Config(...)`, got {type(config).__name__}")
    return configs


def load_config(path: str | Path) -> Config:
    """The one configuration of a Python file. Raises UserError as `load_configs`, and for a file that holds several."""
    config, *others = load_configs(path)
    if others:
        raise UserError(f"{path} holds {1 + len(others)} experiments: name the file of one of them")
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """A configuration as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: Any, value: Any) -> Any:
    """A value of a type made of dataclasses, tuples, unions and plain types, from JSON."""
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        if value is None:
            return None
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        return kind(**{name: from_dict(hints[name], item) for name, item in value.items() if name != "after"})
    if typing.get_origin(kind) is tuple:
        return tuple(value)
    return value


def differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted names under which two configurations differ."""
    names = []
    for key in sorted(set(a) | set(b)):
        left, right = a.get(key), b.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            names += differences(left, right, f"{prefix}{key}.")
        elif left != right:
            names.append(f"{prefix}{key}")
    return names
