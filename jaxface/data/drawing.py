"""A face as lines and surfaces: from a person's traits to a picture, in coordinates where the head is about two units high."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from jaxface.data.canvas import Canvas, Colour, arc, mix, ramp


@dataclass(frozen=True)
class Expression:
    """What a feeling does to a face; 0 everywhere is a neutral one.

    Attributes:
      brow_lift: both brows up.
      brow_tilt: inner ends up (sad, afraid), or down (angry).
      eye: lids further open, or narrowed.
      smile: corners of the mouth up, or down.
      open: how far the mouth is open.
      wide: how far the mouth is stretched.
      teeth: how much of the open mouth is teeth.
      nose: wrinkles across the nose.
      skew: one side of the upper lip raised.
      tear: a tear below each eye.
      frown: upright folds between the brows.
    """

    brow_lift: float = 0.0
    brow_tilt: float = 0.0
    eye: float = 0.0
    smile: float = 0.0
    open: float = 0.0
    wide: float = 0.0
    teeth: float = 0.0
    nose: float = 0.0
    skew: float = 0.0
    tear: float = 0.0
    frown: float = 0.0


EXPRESSIONS = {
    "surprise": Expression(brow_lift=1.0, eye=0.9, open=1.0, wide=-0.6),
    "fear": Expression(brow_lift=0.5, brow_tilt=1.0, eye=0.8, smile=-0.5, open=0.45, wide=0.8, teeth=1.0),
    "disgust": Expression(brow_lift=-0.5, brow_tilt=-0.4, eye=-0.6, smile=-0.7, open=0.2, nose=1.0, skew=1.0),
    "happy": Expression(brow_lift=0.2, eye=-0.3, smile=1.0, open=0.5, wide=0.5, teeth=0.8),
    "sad": Expression(brow_tilt=1.1, eye=-0.35, smile=-1.2, wide=-0.2, tear=1.0),
    "angry": Expression(brow_lift=-0.6, brow_tilt=-1.3, eye=-0.2, smile=-0.4, open=0.4, wide=0.5, teeth=1.0, frown=1.0),
    "neutral": Expression(),
}


@dataclass(frozen=True)
class Traits:
    """One drawn person.

    Attributes:
      stage: age on a scale where each age group is one unit long: 0 a newborn, 9 past the oldest group.
      female: whether the person is drawn as a woman.
      expression: the feeling, scaled by its intensity.
      skin, hair, cloth, lips: colours.
      long_hair: whether hair falls behind the head.
      hair_side: which side the parting is on, -1..1.
      glasses, hat, beard: whether there are any.
      gaze: where the eyes look, x and y in -1..1.
      turn: how far the head is turned to a side, -1..1.
    """

    stage: float
    female: bool
    expression: Expression
    skin: Colour
    hair: Colour
    cloth: Colour
    lips: Colour
    long_hair: bool
    hair_side: float
    glasses: bool
    hat: bool
    beard: bool
    gaze: tuple[float, float]
    turn: float


@dataclass(frozen=True)
class Shape:
    """Proportions of a head, in face coordinates."""

    width: float
    height: float
    jaw: float
    eye_y: float
    eye_x: float
    eye: float
    nose: float
    ear: float
    mouth_y: float
    forehead: float


def proportions(t: Traits) -> Shape:
    """The proportions that belong to an age: from a round head with large low eyes to a long one with sagging cheeks."""
    young, old = 1 - ramp(t.stage, 0, 4), ramp(t.stage, 4, 9)
    return Shape(
        width=0.70 + 0.18 * young - (0.05 if t.female else 0.0),
        height=0.80 + 0.14 * (1 - young) + 0.14 * old,
        jaw=0.62 + 0.22 * young + (0.0 if t.female else 0.14) + 0.16 * old,
        eye_y=-0.06 + 0.22 * young - 0.06 * old,
        eye_x=0.30 + 0.03 * young,
        eye=0.145 + 0.10 * young - 0.05 * old,
        nose=0.08 + 0.18 * (1 - young) + 0.18 * old,
        ear=0.11 + 0.05 * (1 - young) + 0.18 * old,
        mouth_y=0.46 + 0.08 * young,
        forehead=0.0 + 0.28 * ramp(t.stage, 5, 9) * (0.35 if t.female else 1.0),
    )


def outline(s: Shape) -> np.ndarray:
    """The head's contour: an ellipse whose lower half narrows to the jaw."""
    t = np.radians(np.linspace(0, 360, 49))
    x, y = s.width * np.cos(t), s.height * np.sin(t)
    lower = np.clip(y / s.height, 0, 1)
    return np.column_stack([x * (1 - (1 - s.jaw) * lower**1.5), y])


def draw_person(canvas: Canvas, t: Traits, ink: Colour) -> None:
    """Draws a person from the back to the front."""
    s = proportions(t)
    grey = ramp(t.stage, 3, 9)
    hair = mix(t.hair, (238, 238, 240), grey)
    skin = mix(t.skin, mix(t.skin, (215, 205, 200), 0.55), ramp(t.stage, 4, 9))
    shade = mix(skin, ink, 0.7)
    _body(canvas, t, s, skin, ink)
    if t.long_hair and t.stage > 0.6:
        length = 0.5 + 0.45 * ramp(t.stage, 0.6, 3) - 0.35 * ramp(t.stage, 6, 9)
        canvas.area([*arc(0, -0.12, s.width + 0.2, s.height, 180, 360), (s.width + 0.22, length), (-s.width - 0.22, length)], hair, ink)
    for side in (-1, 1):
        canvas.ellipse(side * (s.width + 0.02) - 0.1 * t.turn, s.eye_y + 0.12, 0.6 * s.ear, s.ear, skin, ink)
    canvas.area(outline(s), skin, ink)
    shift = 0.16 * t.turn
    _age_marks(canvas, t, s, shift, shade)
    if t.beard:
        _beard(canvas, s, hair)
    _hair(canvas, t, s, hair, ink)
    _eyes(canvas, t, s, shift, hair, ink)
    _nose(canvas, t, s, shift, shade)
    _mouth(canvas, t, s, shift, ink)
    if t.glasses:
        for side in (-1, 1):
            canvas.line(arc(side * s.eye_x + shift, s.eye_y, 0.22, 0.19), ink, 1.2)
        canvas.line([(-s.eye_x + 0.22 + shift, s.eye_y), (s.eye_x - 0.22 + shift, s.eye_y)], ink, 1.2)
    if t.hat:
        canvas.area(arc(0, -s.height + 0.22, s.width + 0.06, 0.42, 180, 360), t.cloth, ink)
        canvas.area(
            [
                (-s.width - 0.2, -s.height + 0.2),
                (s.width + 0.2, -s.height + 0.2),
                (s.width + 0.2, -s.height + 0.3),
                (-s.width - 0.2, -s.height + 0.3),
            ],
            t.cloth,
            ink,
        )


def _body(canvas: Canvas, t: Traits, s: Shape, skin: Colour, ink: Colour) -> None:
    neck = (0.22 if t.female else 0.34) + 0.06 * ramp(t.stage, 2, 4)
    shoulders = 0.62 + (0.1 if t.female else 0.34) * ramp(t.stage, 1, 3.5)
    canvas.area([(-neck, 0.4), (neck, 0.4), (neck, 1.3), (-neck, 1.3)], mix(skin, ink, 0.15), ink)
    canvas.area(
        [(-neck, 1.08), (neck, 1.08), (shoulders, 1.3), (shoulders + 0.1, 2.2), (-shoulders - 0.1, 2.2), (-shoulders, 1.3)], t.cloth, ink
    )


def _age_marks(canvas: Canvas, t: Traits, s: Shape, shift: float, shade: Colour) -> None:
    """Red cheeks of the young; lines on the forehead, at the eyes, beside the nose and under the eyes of the old."""
    blush = 1 - ramp(t.stage, 0.5, 3)
    if blush > 0.05:
        for side in (-1, 1):
            canvas.ellipse(side * 0.45 + shift, s.eye_y + 0.3, 0.15, 0.11, mix(t.skin, (240, 110, 110), 0.55 * blush))
    lines = ramp(t.stage, 3, 9) * 4.6
    for index in range(4):
        strength = min(max(lines - index, 0.0), 1.0)
        if strength > 0.08:
            y, half = -0.38 - 0.11 * index, (0.40 - 0.04 * index) * (0.4 + 0.6 * strength)
            canvas.line(arc(shift, y + 0.06, half, 0.07, 205, 335), mix(t.skin, shade, strength), 1.0 + 0.9 * strength)
    old = ramp(t.stage, 4, 8.5)
    if old > 0.05:
        tone, reach = mix(t.skin, shade, 0.4 + 0.6 * old), 0.06 + 0.14 * old
        for side in (-1, 1):
            x = side * (s.eye_x + 0.2) + shift
            for slope in (-0.5, 0.0, 0.5):  # crow's feet
                canvas.line([(x, s.eye_y + 0.1 * slope), (x + side * reach, s.eye_y + slope * reach)], tone, 0.8)
            canvas.line(arc(side * s.eye_x + shift, s.eye_y + 0.1, 0.15, 0.04 + 0.1 * old, 20, 160), tone, 0.8 + 0.9 * old)
            canvas.line(
                [(side * 0.17 + shift, s.eye_y + 0.3), (side * (0.28 + 0.06 * old) + shift, s.eye_y + 0.3 + 0.12 + 0.34 * old)],
                tone,
                0.7 + 0.7 * old,
            )


def _beard(canvas: Canvas, s: Shape, hair: Colour) -> None:
    contour = outline(s)
    jaw = contour[contour[:, 1] > 0.22]
    canvas.area([*jaw, (-0.35, 0.36), (0, 0.30), (0.35, 0.36)], hair)


def _hair(canvas: Canvas, t: Traits, s: Shape, hair: Colour, ink: Colour) -> None:
    """The cap of hair, its front line rising with age; newborns have a tuft, girls a bow."""
    top, amount = -s.height - 0.12, ramp(t.stage, 0.2, 1.6)
    if amount < 0.35:
        for dx in (-0.12, 0.0, 0.12):
            canvas.line([(dx, -s.height + 0.06), (1.8 * dx, -s.height - 0.16)], hair, 1.6)
    else:
        front = -0.5 - 0.55 * s.forehead * (s.height + 0.5)
        edge = s.width + 0.07
        part = 0.35 * t.hair_side
        side_burn = 0.12 if t.long_hair else -0.18 - 0.3 * s.forehead
        canvas.area(
            [
                (-edge, side_burn),
                *arc(0, -0.06, edge, s.height + 0.08 + 0.1 * amount, 180, 360),
                (edge, side_burn),
                (edge - 0.16, front + 0.18),
                (part, front - 0.1),
                (-edge + 0.16, front + 0.18),
            ],
            hair,
            ink,
        )
        if not t.female and s.forehead > 0.12:  # a bald crown
            canvas.ellipse(part * 0.3, -s.height + 0.02, 1.9 * s.forehead, 0.75 * s.forehead, mix(t.skin, (215, 205, 200), 0.4))
    if t.female and t.stage < 2.2 and not t.hat:
        for side in (-1, 1):
            canvas.area([(0.3, top + 0.16), (0.3 + 0.26 * side, top), (0.3 + 0.26 * side, top + 0.32)], (225, 60, 120), ink)


def _eyes(canvas: Canvas, t: Traits, s: Shape, shift: float, hair: Colour, ink: Colour) -> None:
    e = t.expression
    lid = s.eye * (0.85 + 0.42 * e.eye)
    brow_colour = mix(hair, ink, 0.55 if t.stage < 7 else 0.15)
    for side in (-1, 1):
        x = side * s.eye_x + shift
        canvas.ellipse(x, s.eye_y, 1.25 * s.eye, lid, (250, 250, 250), ink)
        pupil = 0.62 * s.eye
        px, py = x + 0.3 * s.eye * t.gaze[0], s.eye_y + 0.15 * s.eye * t.gaze[1]
        canvas.ellipse(px, py, pupil, min(pupil, lid), ink)
        canvas.ellipse(px - 0.25 * pupil, py - 0.3 * pupil, 0.28 * pupil, 0.28 * pupil, (255, 255, 255))
        if t.female:
            for angle in (200, 225, 250) if side < 0 else (290, 315, 340):
                c, q = math.cos(math.radians(angle)), math.sin(math.radians(angle))
                canvas.line(
                    [(x + 1.25 * s.eye * c, s.eye_y + lid * q), (x + (1.25 * s.eye + 0.13) * c, s.eye_y + (lid + 0.13) * q)], ink, 1.1
                )
        y = s.eye_y - s.eye - 0.13 - 0.18 * e.brow_lift
        tilt = 0.17 * e.brow_tilt
        inner, outer = (x - side * 0.2, y - tilt), (x + side * 0.22, y + tilt * 0.8)
        canvas.line([inner, ((inner[0] + outer[0]) / 2, (inner[1] + outer[1]) / 2 - 0.05), outer], brow_colour, 1.8 if t.female else 3.2)
        if e.tear > 0.3:
            canvas.ellipse(x + 0.05 * side, s.eye_y + s.eye + 0.16, 0.06, 0.12 * e.tear, (120, 190, 250), ink)
        if e.frown > 0.3:
            canvas.line([(0.06 * side + shift, s.eye_y - s.eye - 0.12), (0.05 * side + shift, s.eye_y - 0.02)], ink, 1.2 * e.frown)


def _nose(canvas: Canvas, t: Traits, s: Shape, shift: float, shade: Colour) -> None:
    tip, wing = s.eye_y + 0.12 + s.nose, 0.05 + 0.32 * s.nose
    x = 1.3 * shift
    canvas.line([(x, s.eye_y + 0.1), (x + wing, tip), (x, tip + 0.04), (x - 0.6 * wing, tip)], shade, 1.4)
    if t.expression.nose > 0.2:
        for index in range(3):
            y, half = s.eye_y + 0.02 + 0.08 * index, 0.12 * t.expression.nose
            canvas.line([(x - half, y), (x, y - 0.05), (x + half, y)], shade, 1.3)


def _mouth(canvas: Canvas, t: Traits, s: Shape, shift: float, ink: Colour) -> None:
    e = t.expression
    half = 0.33 * (1 + 0.35 * e.wide)
    curve, gap = 0.26 * e.smile, 0.02 + 0.27 * max(e.open, 0.0)
    u = np.linspace(-1, 1, 15)
    middle = s.mouth_y + curve * (0.5 - u**2)
    upper = middle - gap * np.sqrt(1 - u**2) - 0.13 * e.skew * np.clip(u, 0, 1) * (1 - u**4) * 2
    lower = middle + gap * np.sqrt(1 - u**2)
    x = half * u + shift
    canvas.area([*zip(x, upper, strict=True), *zip(x[::-1], lower[::-1], strict=True)], (110, 20, 30), t.lips)
    if e.teeth > 0.2 and gap > 0.05:
        inner = 0.75 * e.teeth
        canvas.area(
            [
                *zip(x * 1.0, middle - inner * (middle - upper), strict=True),
                *zip(x[::-1], (middle + inner * 0.5 * (lower - middle))[::-1], strict=True),
            ],
            (250, 250, 245),
        )
        if e.smile < 0:  # clenched teeth show their gaps
            for step in (-0.5, 0.0, 0.5):
                canvas.line([(shift + step * half, s.mouth_y - 0.7 * gap), (shift + step * half, s.mouth_y + 0.5 * gap)], ink, 0.6)
    canvas.line(np.column_stack([x, upper]), t.lips, 2.6 if t.female else 1.0)
    canvas.line(np.column_stack([x, lower]), t.lips, 3.2 if t.female else 1.0)
