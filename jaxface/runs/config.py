"""What a run is: typed values, checked once. A file in `configs/` holds one `config`; the command line changes single values of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxface.adapters.methods import METHODS, get_method, options_for, require_taken
from jaxface.adapters.options import AdapterOptions
from jaxface.cluster import ClusterOptions
from jaxface.data.augment import Augment
from jaxface.data.synthetic import DrawnSet
from jaxface.data.task_files import task_from
from jaxface.data.tasks import TASKS, Task, with_coarse
from jaxface.errors import UserError
from jaxface.imports import remember, run_file
from jaxface.models.heads import TOKENS
from jaxface.models.precision import AUTO, PRECISIONS
from jaxface.models.variants import VARIANTS
from jaxface.objectives.balancing import BALANCERS
from jaxface.objectives.losses import LOSSES, get_loss
from jaxface.ranges import Count, Inside, Items, Known, Like, Listed, Name, Place, Range, Seed, Word, ranged
from jaxface.registry import Registry, require_known
from jaxface.runs.optimizer_options import MOST_EPOCHS, OptimizerOptions

_PACKAGE = Path(__file__).parents[1]
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
"""The configurations that come with the package: inside it where it is installed, beside it in the repository."""

RANDOM = "random"
"""The name of weights that starts an encoder from random numbers."""


@ranged("encoder.")
class EncoderOptions:
    """Which encoder.

    Attributes:
      weights: a checkpoint in any layout, or a run folder; the word "random" trains from nothing.
      variant: the shape to start from random numbers; a checkpoint knows its own, or says of which variants it may be.
      image_size: side in pixels of the input, 0 for the encoder's own.
      remat: what a block keeps for its backward pass: all ("none"), the matrix products ("products") or its input ("full").
      precision: of activations and frozen kernels; "mixed" is bf16 with the sum of blocks' branches in float32, as torch.autocast has it;
        "auto" takes bf16 on accelerators and fp32 on CPUs.
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
    precision: Annotated[str, Known(PRECISIONS, AUTO)] = AUTO
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
      workers: processes that decode and augment images, in an evaluation as far as it has work for them; 0 does it in threads of this one.
      max_repeat: how often a record may be drawn in an epoch at most, on average, by balanced sampling: a cap on the weight of classes with
        few records; 0 for none.
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
    max_repeat: Annotated[float, Range(0, 1e6)] = 0.0


@ranged("method.")
class MethodOptions:
    """How the encoder is adapted: a name of `jaxface.adapters.methods`, and what it may be told."""

    name: Annotated[str, Known(METHODS)] = "dora"
    options: AdapterOptions = field(default_factory=AdapterOptions)


def _configuration(value: Any) -> None:
    if not isinstance(value, Config | None):
        raise UserError("expected a configuration")


def _definitions(value: Any) -> None:
    if not isinstance(value, dict | None):
        raise UserError("expected tasks by their names")
    for name, task in (value or {}).items():
        task_from(name, task)


@ranged()
class Config:
    """A run.

    Attributes:
      name: of the run folder below `out`.
      out: folder of run folders.
      tasks: what is predicted: known tasks, and those of the sets.
      losses: of single tasks, where not their kind's own: coral (ordinal regression), soft (labels smeared over neighbours).
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
      tasks_file: a file of one's own tasks, in place of what the sets say of those.
      definitions: of those tasks that are not built in, as the sets or the file describe them: whoever opens the run needs neither.
      imports: SHA-256 of the files that `--import` ran for it, by name: whoever opens the run has to name them, too.
    """

    name: Annotated[str, Inside()] = "run"
    out: Annotated[str, Place()] = "runs"
    tasks: Annotated[tuple[str, ...], Listed(TASKS), Items(least=1, once=True)] = ("age", "gender", "emotion")
    encoder: EncoderOptions = field(default_factory=EncoderOptions)
    method: MethodOptions = field(default_factory=MethodOptions)
    head: HeadOptions = field(default_factory=HeadOptions)
    data: DataOptions = field(default_factory=DataOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    losses: dict[Annotated[str, Listed(TASKS)], Annotated[str, Known(LOSSES)]] = field(default_factory=dict)
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
    tasks_file: Annotated[str | None, Place()] = None
    definitions: Annotated[Any, Like(_definitions), tyro.conf.Suppress] = None
    imports: Annotated[dict[Name, Annotated[str, Word(r"[0-9a-f]{64}", "a SHA-256")]], tyro.conf.Suppress] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.data.sets and self.tasks_file is None:  # who could say more of them
            require_known("task", self.tasks, self.known)
        for task, name in self.losses.items():
            if task not in self.tasks:
                raise UserError(f"losses {task} {name}: the run has no task {task}, only {' '.join(self.tasks)}")
            if task in self.known:
                self.loss(task)

    @property
    def known(self) -> dict[str, Task]:
        """The tasks that the run knows by name: its own before those of the process."""
        own = {name: task_from(name, value) for name, value in (self.definitions or {}).items()}
        return {**dict(TASKS.items()), **own}

    @property
    def evaluated(self) -> tuple[Task, ...]:
        """What is predicted, and after it what its answers are mapped back to."""
        known = self.known
        return tuple(known[name] for name in with_coarse(self.tasks, known))

    def task(self, name: str) -> Task:
        """A task of the run. Raises UserError for one that is not known."""
        require_known("task", [name], self.known)
        return self.known[name]

    def loss(self, name: str) -> str:
        """What a task is trained with. Raises UserError for a loss that is not for its kind."""
        task = self.task(name)
        loss = self.losses.get(name, task.of.loss(task))
        output = get_loss(loss).output
        if output not in task.of.outputs or (output != "number") != bool(task.classes):
            raise UserError(f"losses {name} {loss}: {loss} is not for {task.says}")
        return loss

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
