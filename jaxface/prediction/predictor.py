"""A run's model as a function of images."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from jaxface.data.decoding import read_photo
from jaxface.data.faces import Detector, Face, crop, enlarged, get_detector
from jaxface.data.framing import PLAIN, noted, resize
from jaxface.data.images import Unreadable
from jaxface.data.task_files import described
from jaxface.data.tasks import BUILT_IN, Task
from jaxface.digests import file_digest
from jaxface.errors import UserError
from jaxface.evaluation.trust import Caution
from jaxface.files import read_object
from jaxface.prediction import engines
from jaxface.prediction.doubt import Doubt
from jaxface.prediction.options import AUTO, FaceOptions
from jaxface.ranges import Count, Place, Share, Where, ranged
from jaxface.runs.base import framing_of
from jaxface.runs.best import model_digest
from jaxface.runs.folder import read_config
from jaxface.runs.temperatures import read_temperatures

Json = dict[str, Any]


@dataclass
class Photo:
    """What was found in an image, before the model sees it.

    Attributes:
      width, height: in pixels.
      faces: found faces.
      crops: uint8 [S, S, 3] of each, S the model's input size.
    """

    width: int
    height: int
    faces: list[Face]
    crops: list[np.ndarray]


class Finder:
    """Finds and crops the faces of photos. Any thread may call it. Raises UserError for a detector that is not there."""

    def __init__(self, options: FaceOptions) -> None:
        self.options, self._local = options.for_tasks(BUILT_IN), threading.local()
        self._detector()

    def _detector(self) -> Detector:
        """This thread's own: OpenCV's networks hold state."""
        if not hasattr(self._local, "detector"):
            options = self.options
            self._local.detector = get_detector(options.faces, options.detector_files, threshold=options.threshold)
        return self._local.detector

    def least(self, size: int) -> int:
        """The sides that a photo must keep where it may be decoded smaller, for crops of `size`; 0 if it may not."""
        if not self.options.reduced:
            return 0
        return size if self.options.faces == "whole" else getattr(self._detector(), "least", 0)

    def __call__(self, image: np.ndarray, size: int, full: tuple[int, int] | None = None, *, framing: str = PLAIN) -> Any:
        """The faces of an image, uint8 [H, W, 3] RGB, each cropped to [size, size, 3]: a `Photo`.

        Args:
          full: width and height of the photo that this is a smaller picture of: boxes are in its pixels; then None for a face whose crop
            has fewer pixels than the model looks at.
          framing: how crops come to their size, see `jaxface.data.framing`.
        """
        height, width = image.shape[:2]
        faces = self._detector()(image)[: self.options.most_faces]
        if self.options.faces == "whole":  # as evaluation sees a prepared face: squashed, nothing added
            crops = [resize(image, size, framing=framing) for _ in faces]
        else:
            crops = [crop(image, face.box, self.options.margin) for face in faces]
            if full and any(len(one) < size for one in crops):
                return None
            crops = [resize(one, size, framing=framing) for one in crops]
        if full is None:
            return Photo(width, height, faces, crops)
        return Photo(*full, [enlarged(face, full[0] / width, full[1] / height) for face in faces], crops)

    def about(self) -> Json:
        """What decides which faces are found, and how they are cropped."""
        options = self.options
        return ({"reduced": True} if options.reduced else {}) | {
            "faces": options.faces,
            "threshold": options.threshold,
            "margin": 0.0 if options.faces == "whole" else options.margin,
            "most_faces": options.most_faces,
            "damaged": options.damaged,
            "detector": [file_digest(path) for path in options.detector_files],
        }


def task_answers(
    tasks: Sequence[Task], temperatures: Mapping[str, float], logits: Mapping[str, Any], count: int, doubt: Doubt | None = None
) -> list[Json]:
    """What logits say of their first `count` rows, as the tasks' kinds have it: of classes the class, its confidence, probabilities."""
    rows: list[Json] = [{} for _ in range(count)]
    for task in tasks:
        values = np.asarray(logits[task.name]).reshape(-1, task.width)[:count]
        shares = task.of.shares(task, values)
        calibrated = task.of.shares(task, values / temperatures[task.name]) if task.name in temperatures else shares
        for row, chances, confidences in zip(rows, shares, calibrated, strict=True):
            answer = task.of.answer(task, chances, confidences)
            row[task.name] = answer if doubt is None else doubt.add(task, answer, chances)
    return rows


@ranged(frozen=False)
class Predictor:
    """`Predictor(run)(images)`: the attributes of every face.

    Attributes:
      run: a run folder.
      options: how faces are found.
      batch_size: most faces that the model sees at once, over all local devices.
      small_batches: also compile programs for 1, 2, 4, ... faces, for callers that cannot wait for a full batch.
      weights: where else to look for the run's base weights.
      engine: what computes the model, an entry of `jaxface.prediction.engines`; "auto" takes the fastest.
      most_loss: the share of faces that "auto" may have in another class than the engine "jax".

    Raises UserError for a folder that holds no trained model, a detector that is not there, or an engine that cannot compute the run.
    """

    run: Annotated[str | Path, Place()]
    options: FaceOptions = field(default_factory=lambda: FaceOptions(faces="whole"))
    batch_size: Count = 32
    small_batches: bool = False
    weights: tuple[Where, ...] = ()
    engine: engines.Name = engines.DEFAULT
    most_loss: Share = 0.01
    caution: Caution = field(default_factory=Caution)

    def __post_init__(self) -> None:
        if self.options.faces == AUTO:
            self.options = self.options.for_tasks(read_config(Path(self.run)).tasks)
        self.finder = Finder(self.options)  # what is wrong with it shows before anything large is read
        folder = Path(self.run)
        self.config = read_config(folder)
        self.tasks: tuple[Task, ...] = tuple(map(self.config.task, self.config.tasks))
        self.digest = model_digest(folder)
        self.temperatures = read_temperatures(folder, self.digest)
        self.doubt = Doubt(folder, self.digest, self.tasks, self.caution) if self.caution.asked else None
        self.engine, self.model = engines.open_engine(self.engine, engines.Place(folder, self.digest, self.weights), self.most_loss)
        self.framing = framing_of(read_object(folder / "best" / "info.json"))
        multiple = self.model.multiple
        powers = [2**i for i in range(self.batch_size.bit_length())]
        sizes = sorted({-(-size // multiple) * multiple for size in (*powers, self.batch_size) if size <= self.batch_size})
        self._first, self.batch_size, self._programs = sizes, sizes[-1], set[int]()
        self.sizes = sizes if self.small_batches and self.model.compiles else sizes[-1:]

    @property
    def named(self) -> dict[str, Task]:
        """Its tasks by name."""
        return {task.name: task for task in self.tasks}

    @property
    def image_size(self) -> int:
        """Side in pixels of a crop."""
        return self.model.image_size

    def warm_up(self) -> None:
        """Compiles the program of every batch size."""
        for size in self.sizes:
            self.answers(self.classify([np.zeros((self.image_size, self.image_size, 3), np.uint8)] * size), size)

    def about(self) -> Json:
        """What a reader of the answers needs to know: model, classes, preprocessing."""
        return ({} if self.engine == engines.DEFAULT else {"engine": self.engine}) | {
            "run": self.config.name,
            "model": self.digest,
            "classes": {task.name: list(task.classes) for task in self.tasks},
            **({} if self.doubt is None else self.doubt.about()),
            **({"tasks": own} if (own := described(self.tasks)) else {}),
            "temperatures": dict(self.temperatures),
            "image_size": self.image_size,
            **noted(self.framing),
            **self.finder.about(),
        }

    @property
    def least(self) -> int:
        """As `Finder.least`, for this model's crops."""
        return self.finder.least(self.image_size)

    def find(self, image: np.ndarray, full: tuple[int, int] | None = None) -> Any:
        """Finds and crops the faces of an image, uint8 [H, W, 3] RGB, as `Finder` does: a `Photo`. Any thread may call it."""
        return self.finder(image, self.image_size, full, framing=self.framing)

    def classify(self, crops: Sequence[np.ndarray]) -> Mapping[str, Any]:
        """Logits of every task for at most `batch_size` crops; does not wait for them. Rows past the crops are padding."""
        images = np.zeros((self._rows(len(crops)), self.image_size, self.image_size, 3), np.uint8)
        for row, one in enumerate(crops):
            images[row] = one
        return self.model(images)

    def _rows(self, count: int) -> int:
        """Rows of the batch for so many crops: for the first of all the fewest that hold them, so that one photo waits for no large
        program; then those of a program that is there, or of `sizes`."""
        if not self.model.compiles:
            return count
        rows = min(size for size in (self._programs.union(self.sizes) if self._programs else self._first) if size >= count)
        self._programs.add(rows)
        return rows

    def answers(self, logits: Mapping[str, Any], count: int) -> list[Json]:
        """What the logits of `classify` say of the first `count` crops: per task class, calibrated confidence, all probabilities."""
        return task_answers(self.tasks, self.temperatures, logits, count, self.doubt)

    def __call__(self, images: Iterable[np.ndarray | str | Path]) -> list[list[Json]]:
        """Per image its faces: `box`, `score`, and per task `class`, `confidence`, `probabilities`.

        Args:
          images: uint8 [H, W, 3] RGB of any sizes, or paths of photos.

        Raises UserError for a photo that cannot be read, or an array that is no image.
        """
        photos = [self.find(pixels_of(image)) for image in images]
        crops = [one for photo in photos for one in photo.crops]
        answers: list[Json] = []
        for start in range(0, len(crops), self.batch_size):
            part = crops[start : start + self.batch_size]
            answers += self.answers(self.classify(part), len(part))
        left = iter(answers)
        return [[face_json(face) | next(left) for face in photo.faces] for photo in photos]


def pixels_of(image: np.ndarray | str | Path) -> np.ndarray:
    """An image, of any library whose images NumPy reads, or a photo's path as uint8 [H, W, 3] RGB. Raises UserError."""
    if isinstance(image, str | Path):
        return read_pixels(Path(image))
    if not any(hasattr(image, name) for name in ("__array__", "__array_interface__")):
        raise UserError(f"an image of type {type(image).__name__}: expected uint8 [H, W, 3], RGB, or the path of a photo")
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise UserError(f"an image of shape {image.shape} and type {image.dtype}: expected uint8 [H, W, 3], RGB")
    return image


def read_pixels(path: Path) -> np.ndarray:
    """A photo as uint8 [H, W, 3] RGB. Raises Unreadable."""
    try:
        return read_photo(path).pixels
    except Unreadable as error:
        raise Unreadable(f"{path}: {error}") from None


def face_json(face: Face) -> Json:
    """A face's place as JSON values."""
    return {"box": [round(edge, 1) for edge in face.box], "score": round(face.score, 4)}
