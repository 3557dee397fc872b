"""Random changes of training images, in the thesis's order (section 3.1, listing 3.1) and with torchvision's meaning, in OpenCV on uint8.

Flip, color jitter, affine and resize in one bilinear warp, erasing; an image larger than the model's input is made as small first. With
`exact` each step is torchvision's own: at the image's size, the nearest pixel in the affine, the resize at the end. What is drawn at
random (`Draw`) is apart from what is done with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import cv2
import numpy as np
from PIL import Image

from jaxface.data.framing import FRAMINGS, PLAIN, resize
from jaxface.data.operations import OPERATIONS, brightness, contrast, draw_operations, saturation
from jaxface.ranges import RISING, Range, Share, ranged

ERASED = 128
"""The pixel value that normalises to zero (127.5 does; the step does not see the difference of 0.004)."""


@ranged("data.changes.")
class Augment:
    """How strong the changes are; the defaults are the thesis's.

    Attributes:
      flip: probability of a horizontal flip.
      jitter: brightness, contrast and saturation change by a factor in 1 +- this.
      degrees: largest rotation to either side.
      translate: largest shift as a share of each side.
      scale: range of zoom.
      erase: probability of erasing a rectangle.
      erase_area: range of the rectangle's share of the image.
      erase_aspect: range of its height over width, drawn evenly in the logarithm.
      operations: how many of RandAugment's operations come before all that; the thesis has none.
      strength: of those, 0 to 1; 0.3 is torchvision's 9 of 30.
      mixup: parameter of the beta distribution by which two images are blended, 0 for never (the thesis does not).
      cutmix: the same for boxes that two images swap; with both, each half of the time.
      exact: change each image at its own size, by its nearest pixels, and resize it then, as the thesis's torchvision does; slower.
    """

    flip: Share = 0.5
    jitter: Annotated[float, Range(0, 1)] = 0.2
    degrees: Annotated[float, Range(0, 180)] = 10.0
    translate: Annotated[float, Range(0, below=1)] = 0.05
    scale: Annotated[tuple[float, float], Range(0.1, 10), RISING] = (0.9, 1.1)
    erase: Share = 0.5
    erase_area: Annotated[tuple[float, float], Range(0, 1), RISING] = (0.02, 0.2)
    erase_aspect: Annotated[tuple[float, float], Range(0.01, 100), RISING] = (0.3, 3.3)
    operations: Annotated[int, Range(0, 16)] = 0
    strength: Share = 0.3
    mixup: Annotated[float, Range(0, 100)] = 0.0
    cutmix: Annotated[float, Range(0, 100)] = 0.0
    exact: bool = False


@dataclass(frozen=True)
class Draw:
    """One image's random numbers.

    Attributes:
      flip: whether to mirror left and right.
      factors: of brightness, contrast, saturation.
      order: in which those three are applied.
      angle: degrees, clockwise as torchvision counts.
      shift: x, y in shares of the sides.
      zoom: factor.
      hole: height, width of the erased rectangle in shares of the sides, or None.
      place: of the rectangle: top, left in shares of the room that it leaves.
      operations: names and values of RandAugment's operations.
    """

    flip: bool
    factors: tuple[float, float, float]
    order: tuple[int, ...]
    angle: float
    shift: tuple[float, float]
    zoom: float
    hole: tuple[float, float] | None
    place: tuple[float, float]
    operations: tuple[tuple[str, float], ...] = ()


def draw(augment: Augment, rng: np.random.Generator) -> Draw:
    """Draws the numbers of one image."""
    j, t = augment.jitter, augment.translate
    return Draw(
        flip=bool(rng.random() < augment.flip),
        factors=tuple(rng.uniform(1 - j, 1 + j, 3)),
        order=tuple(rng.permutation(3)),
        angle=float(rng.uniform(-augment.degrees, augment.degrees)),
        shift=tuple(rng.uniform(-t, t, 2)),
        zoom=float(rng.uniform(*augment.scale)),
        hole=_draw_hole(augment, rng) if rng.random() < augment.erase else None,
        place=tuple(rng.random(2)),
        operations=draw_operations(augment.operations, augment.strength, rng) if augment.operations else (),
    )


def _draw_hole(augment: Augment, rng: np.random.Generator) -> tuple[float, float] | None:
    for _ in range(10):  # as torchvision: ten tries for one that fits
        area = rng.uniform(*augment.erase_area)
        aspect = math.exp(rng.uniform(*np.log(augment.erase_aspect)))
        height, width = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if height < 1 and width < 1:
            return height, width
    return None


def apply(
    image: np.ndarray, numbers: Draw, size: int, out: np.ndarray | None = None, *, exact: bool = False, framing: str = PLAIN
) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [size, size, 3], changed by the drawn numbers; written into `out` where that is given."""
    height, width = image.shape[:2]
    shift = round(numbers.shift[0] * width) / width, round(numbers.shift[1] * height) / height  # whole pixels, as torchvision
    if min(height, width) > size and not exact:  # a warp does not antialias
        image = resize(image, size, framing=framing)
    for name, value in numbers.operations:
        image = OPERATIONS[name].change(image, value)
    for index in numbers.order:
        image = JITTER[index](image, numbers.factors[index])
    target = (width, height) if exact else (size, size)
    way = FRAMINGS[framing]
    flag = cv2.INTER_NEAREST if exact else way.warp if min(height, width) < size else cv2.INTER_LINEAR
    image = affine(image, numbers.angle, shift, numbers.zoom, target, flip=numbers.flip, how=flag, out=None if exact else out)
    if exact:
        out = np.empty((size, size, 3), np.uint8) if out is None else out
        out[:] = Image.fromarray(image).resize((size, size), way.pillow)
        image = out
    return image if numbers.hole is None else erase(image, numbers.hole, numbers.place)


JITTER = (brightness, contrast, saturation)


def affine(
    image: np.ndarray,
    angle: float,
    shift: tuple[float, float],
    zoom: float,
    size: tuple[int, int],
    *,
    flip: bool = False,
    how: int = cv2.INTER_LINEAR,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Mirror, turn and zoom about the centre, a shift, the squash to a width and height: one warp by OpenCV's flag, black outside."""
    height, width = image.shape[:2]
    cos, sin = zoom * math.cos(math.radians(angle)), zoom * math.sin(math.radians(angle))
    # pixel centres lie at half numbers: p' = squash (turn mirror (p + 1/2 - centre) + centre + shift) - 1/2
    mirror, sx, sy = (-1 if flip else 1), size[0] / width, size[1] / height
    x, y = mirror * (0.5 - width / 2), 0.5 - height / 2
    dx, dy = width / 2 + shift[0] * width, height / 2 + shift[1] * height
    matrix = np.array(
        [
            [sx * cos * mirror, -sx * sin, sx * (cos * x - sin * y + dx) - 0.5],
            [sy * sin * mirror, sy * cos, sy * (sin * x + cos * y + dy) - 0.5],
        ]
    )
    return cv2.warpAffine(image, matrix, size, dst=out, flags=how, borderMode=cv2.BORDER_CONSTANT)


def erase(image: np.ndarray, hole: tuple[float, float], place: tuple[float, float]) -> np.ndarray:
    """Sets a rectangle to the value that normalises to zero; hole and place are those of `Draw`."""
    rows, columns = image.shape[:2]
    height, width = round(hole[0] * rows), round(hole[1] * columns)
    top, left = int(place[0] * (rows - height + 1)), int(place[1] * (columns - width + 1))
    image[top : top + height, left : left + width] = ERASED
    return image
