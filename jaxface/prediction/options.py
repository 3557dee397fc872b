"""What may be said about a prediction, apart from its engine, so that `--help` needs no model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Literal

from jaxface.data.faces import DETECTORS, MARGIN
from jaxface.data.tasks import BUILT_IN
from jaxface.ranges import Known, Range, Share, Where, ranged, refuse_idle

AUTO = "auto"


@ranged()
class FaceOptions:
    """How faces are found in a photo.

    Attributes:
      faces: a detector (ssd, yunet), or whole: each photo is one face already; "auto" takes ssd, and whole for a run none of whose tasks is
        about faces.
      detector_files: model files of the detector, where it does not bring its own.
      threshold: least score of a face; the detector's own if not given.
      margin: added around a face on each side, as a share of its longer side: as `jaxface.prepare` cropped the training faces.
      most_faces: of one photo; the most certain ones are kept.
      reduced: decode large JPEGs at a half, a quarter or an eighth, as far as the detector and each face's crop need no more pixels, which
        is several times as fast for a phone's photos. Boxes and answers then differ a little from those of full size.
      damaged: photos whose decoder complains are looked at, with the status "damaged", or left without faces.
    """

    faces: Annotated[str, Known(DETECTORS, AUTO)] = AUTO
    detector_files: tuple[Where, ...] = ()
    threshold: Share | None = None
    margin: Annotated[float, MARGIN] = 0.2
    most_faces: Annotated[int, Range(1, 10_000)] = 100
    reduced: bool = False
    damaged: Literal["keep", "drop"] = "keep"

    def __post_init__(self) -> None:
        detection = ("detector_files", "threshold", "most_faces", "margin")
        refuse_idle(self, self.faces != "whole", "each photo is one face already, as --faces whole takes it", *detection)

    def for_tasks(self, tasks: Iterable[str]) -> FaceOptions:
        """With a detector in the place of "auto"."""
        if self.faces != AUTO:
            return self
        return replace(self, faces="ssd" if any(task in BUILT_IN for task in tasks) else "whole")
