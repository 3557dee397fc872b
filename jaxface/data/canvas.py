"""Shapes on a picture in coordinates of one's own: lines, areas and ellipses in colours."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

Colour = tuple[float, float, float]
SUB = 4
"""Bits of a pixel's fraction that OpenCV's shapes take."""


class Canvas:
    """A picture that is drawn on in face coordinates: x to the right, y down, the head's middle at the origin."""

    def __init__(self, image: np.ndarray, matrix: np.ndarray, line: float) -> None:
        self.image, self.matrix = image, matrix
        self.unit = math.sqrt(abs(np.linalg.det(matrix[:, :2])))
        self.line_width = line

    def _pixels(self, points: Sequence[tuple[float, float]] | np.ndarray) -> np.ndarray:
        return np.round((np.asarray(points, float) @ self.matrix[:, :2].T + self.matrix[:, 2]) * 2**SUB).astype(np.int32)

    def area(self, points: Sequence[tuple[float, float]] | np.ndarray, colour: Colour, outline: Colour | None = None) -> None:
        """Fills a polygon, and draws its edge."""
        pixels = self._pixels(points)
        cv2.fillPoly(self.image, [pixels], colour, cv2.LINE_AA, SUB)
        if outline is not None:
            cv2.polylines(self.image, [pixels], True, outline, max(1, round(self.line_width)), cv2.LINE_AA, SUB)

    def line(self, points: Sequence[tuple[float, float]] | np.ndarray, colour: Colour, width: float = 1.0) -> None:
        """Draws a polyline, `width` times as thick as an outline."""
        thickness = max(1, round(self.line_width * width))
        cv2.polylines(self.image, [self._pixels(points)], False, colour, thickness, cv2.LINE_AA, SUB)

    def ellipse(self, x: float, y: float, a: float, b: float, colour: Colour, outline: Colour | None = None) -> None:
        """Fills an ellipse with half axes a and b."""
        self.area(arc(x, y, a, b), colour, outline)


def arc(x: float, y: float, a: float, b: float, start: float = 0.0, end: float = 360.0) -> np.ndarray:
    """Points on an ellipse from one angle to another (degrees, clockwise from the right)."""
    t = np.radians(np.linspace(start, end, 25))
    return np.column_stack([x + a * np.cos(t), y + b * np.sin(t)])


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """`share` of b in a."""
    red, green, blue = ((1 - share) * x + share * y for x, y in zip(a, b, strict=True))
    return red, green, blue


def ramp(value: float, low: float, high: float) -> float:
    """0 below low, 1 above high, straight between."""
    return min(max((value - low) / (high - low), 0.0), 1.0)
