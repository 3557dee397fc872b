"""What computes a run's model when photos are answered: an engine is an entry of `ENGINES`, a user's own one more.

ENGINES.add("mine", Engine(open=lambda place: MyModel(place.run), loss=lambda place: 0.0))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import numpy as np

from jaxface.data.tasks import Task
from jaxface.errors import UserError, tell
from jaxface.ranges import Known
from jaxface.registry import Registry

AUTO = "auto"
"""The fastest engine of a run that changes answers no more than it may."""


class Model(Protocol):
    """A run's model, ready to compute.

    Attributes:
      image_size: side in pixels of its input.
      multiple: batches have a multiple of so many images.
      compiles: whether every size of a batch is a program of its own.
    """

    image_size: int
    multiple: int
    compiles: bool

    def __call__(self, images: np.ndarray) -> Mapping[str, Any]:
        """uint8 [B, S, S, 3] -> logits of each task, B rows of C; need not wait until they are computed."""
        ...


class Place(NamedTuple):
    """A run, and where it is computed.

    Attributes:
      run: its folder.
      digest: names its model (`jaxface.runs.best.model_digest`).
      weights: where else its base weights may be.
    """

    run: Path
    digest: str
    weights: tuple[Path, ...] = ()


class Engine(NamedTuple):
    """How a run's model is computed.

    Attributes:
      open: reads what it needs. Raises UserError as `loss`.
      loss: the share of faces that it puts in another class than `jax` does, of the task where it is largest. Raises UserError where it
        cannot compute this run, and says what is missing.
      where: platforms of JAX beside which it can be the fastest, all if empty.
      weights: whether it looks for the run's base weights.
    """

    open: Callable[[Place], Model]
    loss: Callable[[Place], float]
    where: tuple[str, ...] = ()
    weights: bool = True


ENGINES: Registry[Engine] = Registry("engine", others=AUTO)
"""The fastest first: PE-B, 8 images on 2 cores with AVX-512: see `python -m jaxface.bench predict`."""


class JaxModel:
    """The run's own model, in the precision of its configuration, on all local devices."""

    compiles = True

    def __init__(self, place: Place) -> None:
        import jax

        from jaxface.devices import replicate
        from jaxface.models.tree import flatten
        from jaxface.runs.base import refuse_idle_places
        from jaxface.runs.inference import make_predict
        from jaxface.runs.model import load_trained

        trained = load_trained(place.run, place.weights)
        refuse_idle_places(place.run, trained.base, place.weights)
        arrays, structure = flatten(trained.merged())
        self._arrays, self._predict = replicate(arrays), make_predict(structure, trained.config.known)
        self.image_size, self.multiple = trained.image_size, jax.local_device_count()

    def __call__(self, images: np.ndarray) -> Mapping[str, Any]:
        from jaxface.devices import shard

        return self._predict(self._arrays, shard(images))[0]


class Later(Mapping[str, np.ndarray]):
    """Logits that a thread is computing."""

    def __init__(self, future: Future[Mapping[str, np.ndarray]]) -> None:
        self._future = future

    def __getitem__(self, task: str) -> np.ndarray:
        return self._future.result()[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self._future.result())

    def __len__(self) -> int:
        return len(self._future.result())


class ExportedModel:
    """A model that `jaxface.export` wrote, computed in a thread; batches of any size.

    Attributes:
      tasks: of the run, all of which it must answer.

    Raises UserError if it does not give the sample's answers on this machine, and what the library raises for files that it cannot compute.
    """

    multiple, compiles = 1, False

    def __init__(self, library: str, folder: Path, manifest: Mapping[str, Any], tasks: Sequence[Task]) -> None:
        from jaxface.exports.agreement import changes
        from jaxface.exports.onnx_file import FILE, LIBRARIES

        check, (_, *shape) = manifest["check"], manifest["input"]["images"]["shape"]
        unknown = {FILE, check["sample"]} - set(manifest["files"])
        if unknown:
            raise UserError(f"{folder}: its manifest has no hash of {', '.join(sorted(unknown))}: export it again")
        self._answer, self.image_size = LIBRARIES.get(library)(folder / FILE), int(shape[0])
        with np.load(folder / check["sample"]) as sample:
            images, expected = sample["images"][:1], {task.name: sample[f"logits_{task.name}"][:1] for task in tasks}
        found = self._answer(images)
        odd = any(not np.shape(found[task.name]) == expected[task.name].shape == (1, task.width) for task in tasks)
        if odd or images.shape != (1, *shape) or images.dtype != np.uint8:
            raise UserError(f"{folder}: its sample is not of this run's images and tasks: export it again")
        worst = changes(tasks, found, expected).max()
        if not worst <= check["tolerance"]:
            raise UserError(
                f"{folder}: {library} says something else on this machine than the manifest's sample (by {worst:.1e}): export it again"
            )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")

    def __call__(self, images: np.ndarray) -> Mapping[str, Any]:
        return Later(self._thread.submit(self._answer, images))


def exported(place: Place, name: str) -> tuple[Path, Mapping[str, Any]]:
    """The folder that holds a run's export, and its manifest, once every file is what was written and of this very model.

    Raises UserError otherwise, which says how it is made.
    """
    from jaxface.exports.exporter import read_manifest

    folder = place.run / "export" / name
    form, _, precision = name.partition("-")
    made = f"`python -m jaxface.export {place.run} --to {form}{f' --precision {precision}' if precision else ''}` makes it"
    if not (folder / "manifest.json").is_file():
        raise UserError(f"no {folder}: {made}")
    manifest = read_manifest(folder)
    if manifest.get("model_sha256") != place.digest or manifest.get("format") != name:
        raise UserError(f"{folder} is of another model than {place.run}: {made} anew")
    return folder, manifest


def engine_on(export: str, library: str) -> Engine:
    """A library on an export of that name, as `jaxface.exports.onnx_file.LIBRARIES` knows it."""

    def open_model(place: Place) -> Model:
        from jaxface.runs.folder import read_config  # slow to import: not for --help

        folder, manifest = exported(place, export)
        config = read_config(place.run)
        try:
            return ExportedModel(library, folder, manifest, [config.task(name) for name in config.tasks])
        except UserError:
            raise
        except Exception as error:  # of the library, or for a manifest or a sample that lacks something
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise UserError(f"{folder}: cannot be computed by {library} ({reason}): export it again") from None

    def loss(place: Place) -> float:
        from jaxface.exports.onnx_file import required

        required(library)
        folder, manifest = exported(place, export)
        if "-" not in export:  # in float32
            return 0.0
        try:
            agreement = manifest["agreement"]
            same, images = [float(said["same_class"]) for said in agreement["tasks"].values()], int(agreement["images"])
            if images < 1 or not same or not all(0 <= share <= 1 for share in same):
                raise ValueError(f"same_class {same} of {images} images")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{folder}: its manifest does not say how many faces keep their class ({error}): export it again") from None
        return max(1.0 - min(same), 1 / images)  # that none of three changed does not say that none of a hundred does

    return Engine(open_model, loss, ("cpu",), weights=False)


ENGINES.add("openvino-int8", engine_on("onnx-int8", "openvino"))
ENGINES.add("onnxruntime-int8", engine_on("onnx-int8", "onnxruntime"))
ENGINES.add("onnxruntime", engine_on("onnx", "onnxruntime"))
ENGINES.add("jax", Engine(JaxModel, lambda place: 0.0))

DEFAULT = "jax"
Name = Annotated[str, Known(ENGINES, AUTO)]
"""Of an engine."""


def open_engine(name: str, place: Place, most_loss: float) -> tuple[str, Model]:
    """A run's model in an engine, and the engine's name: for `AUTO` the fastest there is for this device that loses no more than it may.

    Raises UserError for an unknown engine, or one that cannot compute this run.
    """
    if name != AUTO:
        return name, ENGINES.get(name).open(place)
    reasons = []
    for name, engine in ENGINES.items():
        try:
            if engine.where and _platform() not in engine.where:
                raise UserError(f"for {', '.join(engine.where)}")
            loss = engine.loss(place)
            if loss > most_loss:
                raise UserError(f"puts {loss:.2%} of faces in another class, more than {most_loss:.2%}")
            model = engine.open(place)
        except UserError as error:
            reasons.append(f"{name}: {error}")
            continue
        tell(f"engine {name} (another class for {loss:.2%} of faces)" + "".join(f"; not {reason}" for reason in reasons))
        return name, model
    raise UserError(f"no engine for {place.run}: {'; '.join(reasons)}")


def _platform() -> str:
    import jax

    return jax.default_backend()
