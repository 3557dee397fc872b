"""Which face of an image becomes a record, and how it is cut out."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from jaxface.data.decoding import decode_photo, read_file
from jaxface.data.faces import CHOICES, DETECTORS, MARGIN, Box, Detector, Face, crop, crop_upright, get_detector, inside
from jaxface.data.headers import Unreadable, is_plain
from jaxface.data.images import encode
from jaxface.data.records import Record
from jaxface.errors import UserError
from jaxface.ranges import Known, Range, Share, Where, ranged, refuse_idle

AUTO = "auto"
FALLBACK = "ssd"
"""The detector for whole photos without a box, as in the thesis (section 2.7)."""


@ranged("crop.")
class Cropping:
    """How faces are cut out.

    Attributes:
      detector: "auto" takes the authors' boxes where there are some, crops as they are, and looks for a face in the rest with the thesis's
        SSD; the name of a detector (ssd, yunet, whole) looks in every image, near the authors' box where there is one.
      files: the detector's model files.
      threshold: least score of a face, or the detector's own.
      choose: which of several faces.
      margin: added around the box on each side, as a share of its longer side; or the source's own.
      min_size: least side of a face's box in pixels.
      damaged: images whose decoder complains are kept, and listed, or dropped.
      level: turn the face so that its eyes are at one height (for detectors with landmarks: yunet).
    """

    detector: Annotated[str, Known(DETECTORS, AUTO)] = AUTO
    files: tuple[Where, ...] = ()
    threshold: Share | None = None
    choose: Literal["largest", "central"] = "largest"
    margin: Annotated[float | None, MARGIN] = None
    min_size: Annotated[int, Range(1, 10_000)] = 16
    damaged: Literal["keep", "drop"] = "keep"
    level: bool = False

    def __post_init__(self) -> None:
        searching = ("files", "threshold", "choose", "margin")
        refuse_idle(self, self.detector != "whole", "each image is one face, as crop.detector whole takes it", *searching, prefix="crop.")

    def check(self) -> None:
        """Raises UserError for options that cannot work."""
        if self.detector != AUTO:
            get_detector(self.detector, self.files, threshold=self.threshold)
        elif self.level or self.files or self.threshold is not None:
            raise UserError("--crop.level, --crop.files and --crop.threshold need --crop.detector NAME")
        if self.level and self.detector in ("ssd", "whole"):
            raise UserError(f"--crop.level needs a detector with landmarks (yunet), not {self.detector}")


@lru_cache(maxsize=4)
def _detector(name: str, files: tuple[Path, ...], threshold: float | None) -> Detector:
    return get_detector(name, files, threshold=threshold)


def cut_face(record: Record, cropping: Cropping, margin: float) -> tuple[bytes, np.ndarray, str]:
    """The encoded face, its pixels, uint8 [H, W, 3], and what the image's decoder complained of.

    The file's own bytes are kept where they are a plain, undamaged JPEG or PNG of the face alone.

    Args:
      margin: of the source, where `cropping` has none.

    Raises Unreadable if the image or its face cannot be used.
    """
    data = record.image if isinstance(record.image, bytes) else read_file(record.image)
    image, damage = decode_photo(data)
    if damage and cropping.damaged == "drop":
        raise Unreadable(f"damaged: {damage}")
    face = _find(image, record, cropping)
    height, width = image.shape[:2]
    x0, y0, x1, y1 = (0, 0, width, height) if face is None else face.box
    if inside((x0, y0, x1, y1), width, height) and min(x1 - x0, y1 - y0) < cropping.min_size:
        raise Unreadable(f"the face is only {x1 - x0:.0f} x {y1 - y0:.0f} pixels (at least {cropping.min_size})")
    if face is None:
        return data if is_plain(data) and not damage else encode(image), image, damage
    cut = crop_upright(image, face, _margin(cropping, margin)) if cropping.level else crop(image, face.box, _margin(cropping, margin))
    return encode(cut), cut, damage


def _margin(cropping: Cropping, own: float) -> float:
    return own if cropping.margin is None else cropping.margin


def _find(image: np.ndarray, record: Record, cropping: Cropping) -> Face | None:
    """The record's face, or None where that is the whole image."""
    if cropping.detector == AUTO and record.box is not None:
        return Face(record.box)
    if (cropping.detector == AUTO and record.is_crop) or cropping.detector == "whole":
        return None
    name = FALLBACK if cropping.detector == AUTO else cropping.detector
    faces = _detector(name, cropping.files, cropping.threshold)(image)
    box = record.box
    if box is not None:
        faces = [face for face in faces if overlap(face.box, box) > 0.1]
    if not faces:
        raise Unreadable("no face found" + (" at the authors' box" if box is not None else ""))
    if box is not None:
        return max(faces, key=lambda face: overlap(face.box, box))
    return CHOICES[cropping.choose](faces, image.shape[1], image.shape[0])


def overlap(a: Box, b: Box) -> float:
    """The area of two boxes' intersection over that of their union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common) if common else 0.0
