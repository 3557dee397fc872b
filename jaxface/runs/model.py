"""The model of a run: as its configuration describes it before training, and as training left it in `best/`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from jaxface import weights
from jaxface.adapters.adapt import adapt_with_groups, merge
from jaxface.adapters.methods import Group, get_method
from jaxface.adapters.quantized import quantize
from jaxface.data.tasks import Task
from jaxface.digests import combined
from jaxface.errors import UserError
from jaxface.kernels.operations import kernel_choice
from jaxface.kernels.platform import platform
from jaxface.models.encoder import Encoder, random_encoder, use_attention, use_kernels
from jaxface.models.heads import Classifier
from jaxface.models.precision import Precision, precision_of
from jaxface.models.tree import arrays_of, flatten, shallow_copy
from jaxface.models.variants import get_variant
from jaxface.objectives.losses import get_loss
from jaxface.ranges import PathLike, checked, require
from jaxface.runs.base import Base, find_bases, framing_of, is_run, opened_as_base, random_fingerprint
from jaxface.runs.best import Best, model_digest, read_best
from jaxface.runs.config import RANDOM, Config
from jaxface.runs.folder import read_config
from jaxface.runs.parts import Parts, fingerprint, take_apart
from jaxface.runs.temperatures import read_temperatures
from weights_convert.folders import WEIGHTS
from weights_convert.inference import Ambiguous


def make_parts(config: Config, base: Base | None = None, dtype: DTypeLike | None = None) -> Parts:
    """The model that the configuration describes, before training, taken apart. What trains is float32 whatever is computed in.

    Args:
      base: what it starts from; loaded if None.
      dtype: of all activations and frozen kernels; the configuration's precision if None.
    """
    base = base or load_base(config)
    precision = precision_of(config.encoder.precision) if dtype is None else Precision(jnp.dtype(dtype))
    encoder, previous = base.encoder, base.previous
    method = get_method(config.method.name)
    rngs = nnx.Rngs(config.seed)
    encoder, groups = adapt_with_groups(encoder, method.name, replace(config.method.options, num_tasks=len(config.tasks)), rngs)
    quantize(encoder, config.encoder.base, groups)
    encoder.remat, (encoder.dtype, encoder.residual) = config.encoder.remat, precision
    use_attention(encoder, config.encoder.attention)
    use_kernels(encoder, kernel_choice(config.encoder.kernels))
    encoder.loop = _loop(config, groups)
    classes = {task: config.task(task).width for task in config.tasks}
    outputs = {task: get_loss(config.loss(task)).output for task in config.tasks}
    head = {"deep": config.head.deep, "batch_norm": method.batch_norm, "dropout": config.head.dropout, "outputs": outputs}
    model = Classifier(encoder, classes, **head, tokens=config.head.tokens, rngs=rngs)
    if previous is not None:
        _take_heads(model, previous)
    return take_apart(model, groups, precision.dtype)


def _loop(config: Config, groups: Sequence[Group]) -> str:
    """How blocks come one after another: where they train on a GPU, each as a program of its own."""
    if config.encoder.loop != "auto":
        return config.encoder.loop
    return "unrolled" if platform() == "gpu" and any(group.rate == "backbone" for group in groups) else "scan"


def frozen_parts(config: Config, base: Base, dtype: DTypeLike | None = None) -> Parts:
    """`make_parts` for a model whose trained values are at hand: these are shapes, and one program makes what is frozen.

    Args:
      base: what it starts from; random weights that are not drawn yet are drawn within that program, as far as they are frozen.
    """
    arrays, structure = ({}, None) if base.encoder is None else flatten(base.encoder)
    made: list[Parts] = []

    def frozen(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        new = Encoder(get_variant(config.encoder.variant), rngs=nnx.Rngs(config.seed)) if structure is None else structure.build(arrays)
        made.append(make_parts(config, base._replace(encoder=new, previous=None), dtype))
        return made[-1].frozen

    found = jax.jit(frozen)(arrays)
    return replace(made[-1], trained=_shapes(made[-1].trained), statistics=_shapes(made[-1].statistics), frozen=found)


def _shapes(arrays: Mapping[str, jax.Array]) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in arrays.items()}


def shapes_of(config: Config, base: Base | None = None) -> Parts:
    """The parts of `make_parts` as shapes, nothing computed: of the variant that is named, or on a base."""
    made: list[Parts] = []
    if base is None:
        config = replace(config, encoder=replace(config.encoder, weights=RANDOM))
    jax.eval_shape(lambda: made.append(make_parts(config, base)))
    return replace(made[0], **{field: _shapes(getattr(made[0], field)) for field in ("trained", "statistics", "frozen")})


def _take_heads(model: Classifier, previous: Classifier) -> None:
    """Starts each head from the earlier run's head of the same task and shape."""
    for task in model.heads:
        if task in previous.heads:
            mine, theirs = flatten(model.heads[task]), flatten(previous.heads[task])[0]
            if {k: v.shape for k, v in mine[0].items()} == {k: v.shape for k, v in theirs.items()}:
                model.heads[task] = mine[1].build(theirs)


@dataclass(frozen=True)
class Trained:
    """A run's best model.

    Attributes:
      folder: the run folder.
      config: of the run.
      model: the classifier, its adapters as they were trained.
      digest: SHA-256 of the file that holds what trained: it names the model.
      fingerprint: SHA-256 of what trained and of the base below it, for runs that start from this one.
      base: where the base weights were found; None for random ones.
      base_fingerprint: of these, see `jaxface.runs.base`.
      places: where else base weights were looked for.
      temperatures: of `jaxface.evaluate`, per task; empty before it ran.
      framing: how it sees pictures, see `jaxface.data.framing`.
    """

    folder: Path
    config: Config
    model: Classifier
    digest: str
    fingerprint: str
    base: Path | None
    base_fingerprint: str
    places: tuple[Path, ...]
    temperatures: Mapping[str, float]
    framing: str

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it predicts."""
        return tuple(map(self.config.task, self.config.tasks))

    @property
    def image_size(self) -> int:
        """Side in pixels of its input."""
        return self.config.encoder.image_size or self.model.encoder.config.image_size

    def merged(self) -> Classifier:
        """The same model with its adapters merged: it costs what the plain encoder costs.

        One that computes in bfloat16 keeps them as they are: in it W + A B is W again wherever the update is below a 256th of W.
        """
        return self.plain() if self.model.encoder.dtype == jnp.float32 else shallow_copy(self.model)

    def plain(self) -> Classifier:
        """The same with its adapters merged whatever it computes in."""
        model = shallow_copy(self.model)
        whole = model.encoder.dtype == jnp.float32  # else `merge` looks at values
        model.encoder = jax.jit(merge)(model.encoder) if whole else merge(model.encoder)
        return model

    def before(self) -> Classifier:
        """The model that training started from."""
        return make_parts(self.config, load_base(self.config, self.base, self.places)).build()


def load_trained(folder: Path | str, places: Sequence[Path] = (), *, dtype: DTypeLike | None = None) -> Trained:
    """Reads a run's best model.

    Args:
      places: files or runs to look for the base weights at, before where they were when the run was trained.
      dtype: of activations and frozen kernels; what the configuration says for this device if None.

    Raises UserError if the folder has no finished epoch, if it is damaged, or if no base weights are those that it was trained on.
    """
    folder = Path(folder)
    config, best = read_config(folder), read_best(folder)
    parts, base = _on_its_base(config, folder, best, places, dtype)
    return _trained(folder, config, best, parts, base, places)


def load_on(folder: Path, base: Base, parts_of: Callable[[Config], Parts]) -> Trained:
    """A run's best model on base weights that are loaded already.

    Args:
      parts_of: gives the parts of `make_parts` on that base: the same for runs that differ in their arrays alone.

    Raises UserError as `load_trained`.
    """
    config, best = read_config(folder), read_best(folder)
    if best.info.get("format", 1) < 2:
        raise UserError(f"{folder}: an old run, which does not say what it stands on as runs do now: train it again")
    base.require(folder, best.info.get("base_sha256"))
    try:
        parts = parts_of(config)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    return _trained(folder, config, best, parts, base, ())


def _trained(folder: Path, config: Config, best: Best, parts: Parts, base: Base, places: Sequence[Path]) -> Trained:
    expected = {**parts.trained, **parts.statistics}
    if {k: v.shape for k, v in best.arrays.items()} != {k: v.shape for k, v in expected.items()}:
        raise UserError(f"{folder / 'best'}: its arrays do not fit the configuration in {folder / 'config.json'}")
    model = parts.build({name: jax.device_put(array) for name, array in best.arrays.items()})
    model.encoder.loop = "scan"  # nothing is kept for a backward pass
    digest, identity = model_digest(folder), combined({"trained": fingerprint(best.arrays), "base": base.fingerprint})
    found = read_temperatures(folder, digest)
    return Trained(folder, config, model, digest, identity, base.path, base.fingerprint, tuple(places), found, framing_of(best.info))


def _on_its_base(config: Config, folder: Path, best: Best, places: Sequence[Path], dtype: DTypeLike | None) -> tuple[Parts, Base]:
    """The parts of a run's model, on the base weights with the fingerprint that it was trained on."""
    expected, seen = best.info.get("base_sha256"), []
    for path in find_bases(config, folder, best.info, places):
        new = best.info.get("format", 1) > 1
        base = load_base(config, path, places, draw=not new)
        if new:
            if base.fingerprint == expected:
                return frozen_parts(config, base, dtype), base
        elif expected in _old_fingerprints(config, base):
            return make_parts(config, base, dtype), base
        seen.append(str(base.path or RANDOM))
    raise UserError(f"{folder} was trained on other base weights than those at {', '.join(seen)}: --weights FILE says where its own are")


def _old_fingerprints(config: Config, base: Base) -> Iterator[str]:
    """What runs of format 1 noted: a hash of the frozen arrays in the dtype that they were computed with."""
    for dtype in (jnp.float32, jnp.bfloat16):
        yield fingerprint(make_parts(config, base, dtype).frozen)


@checked
def load_run(folder: PathLike) -> tuple[Config, Classifier]:
    """A run's configuration and its best model. Raises UserError as `load_trained`."""
    trained = load_trained(folder)
    return trained.config, trained.model


@checked
def load_encoder(path: PathLike, **options: Unpack[weights.EncoderKeywords]) -> Encoder:
    """A run's best encoder, its adapters merged (see `Trained.merged`); or a checkpoint's.

    Args:
      options: of `jaxface.weights.load_encoder`; a run takes `dtype`, `residual` and `remat` of them.

    Raises UserError as `load_trained`, or as that; and for options of a run, whose configuration says them.
    """
    if is_run(Path(path)):
        if not (Path(path) / "config.json").is_file():
            raise UserError(f"{path}: a folder with neither a run (config.json) nor a checkpoint ({', '.join(WEIGHTS)})")
        kinds = get_type_hints(weights.EncoderKeywords, include_extras=True)
        for name in options.keys() & kinds.keys():  # as of a checkpoint, whose reading checks them
            require(kinds[name], options.get(name), name)
        encoder = load_trained(path, dtype=options.pop("dtype", None) or jnp.float32).merged().encoder
        encoder.remat = options.pop("remat", encoder.remat)
        encoder.residual = jnp.dtype(options.pop("residual", None) or encoder.dtype)
        if options:
            raise UserError(f"{path}: a run knows its encoder's {', '.join(options)}: leave that out")
        return encoder
    return weights.load_encoder(path, **options)


def load_base(config: Config, path: Path | None = None, places: Sequence[Path] = (), *, draw: bool = True) -> Base:
    """What the configuration says to start from, or, in its place, what lies at `path`.

    Args:
      places: further places to look for the base of a base.
      draw: random weights; else they are left to `frozen_parts`.

    Raises UserError if no weights are named for a method that adapts some, or if they cannot be read.
    """
    source = config.encoder.weights
    if source == RANDOM:
        variant = get_variant(config.encoder.variant)
        encoder: Any = random_encoder(variant, config.seed) if draw else None
        return Base(encoder, None, random_fingerprint(variant.to_json(), config.seed), None)
    if source is None:
        raise UserError(
            f"method {config.method.name} needs an encoder: --encoder.weights FILE_OR_RUN (or the word '{RANDOM}' to train from nothing)"
        )
    path = path or Path(source)
    if is_run(path):
        with opened_as_base(path):
            trained = load_trained(path, [place for place in places if place.resolve() != path.resolve()], dtype=np.float32)
        return Base(trained.merged().encoder, trained.model, trained.fingerprint, path)
    try:
        encoder = weights.load_encoder(path)
    except Ambiguous as error:  # nor is the variant told to a checkpoint that knows its own
        if config.encoder.variant not in error.names:
            raise
        encoder = weights.load_encoder(path, config=config.encoder.variant)
    return Base(encoder, None, fingerprint({name: np.asarray(leaf, np.float32) for name, leaf in arrays_of(encoder).items()}), path)
