"""Drawn faces with age, gender and emotion: endless example data that needs no download, each one a function of (seed, index, style).

A style is one entry: how colours are chosen, how lines are drawn, and what happens to the finished picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

import cv2
import numpy as np

from jaxface.data.canvas import Canvas, Colour, mix
from jaxface.data.drawing import EXPRESSIONS, Traits, draw_person
from jaxface.data.tasks import AGE, AGE_STARTS, EMOTION, GENDER, MISSING, TASKS, Task
from jaxface.ranges import Known, Range, Seed, Share, ranged
from jaxface.registry import Registry

SUPERSAMPLING = 2
"""Each side is drawn this many times larger and shrunk."""


@dataclass(frozen=True)
class Drawn:
    """One drawn face.

    Attributes:
      image: uint8 [S, S, 3] RGB.
      years: the age that was drawn.
      labels: class of each task, `MISSING` where it is left out.
    """

    image: np.ndarray
    years: float
    labels: dict[str, int]


@dataclass(frozen=True)
class Style:
    """A way to draw.

    Attributes:
      ink: colour of the lines.
      line: width of an outline as a share of the picture.
      stretch: width and height of the head against the paint's.
      finish: what is done to the finished picture, uint8 [S, S, 3] -> uint8 [S, S, 3].
    """

    ink: Colour
    line: float
    stretch: tuple[float, float]
    finish: Callable[[np.ndarray, np.random.Generator], np.ndarray]


STYLES: Registry[Style] = Registry("drawing style")


@ranged("data.drawn.")
class DrawnSet:
    """A set of drawn faces, made when first needed.

    Attributes:
      style: one of `STYLES`.
      count: faces for training and validation.
      test_count: faces for testing, all labels present.
      size: side in pixels.
      seed: of the drawings.
      missing: share of the training labels that are left out.
      skew: how many times as frequent as its last class a task's first one is in training, those between evenly spaced in logarithms.
      noisy: the task whose training labels are partly wrong, '' for none.
      noise: share of them that are drawn at random.
    """

    style: Annotated[str, Known(STYLES)] = "paint"
    count: Annotated[int, Range(2, 10**7)] = 6000
    test_count: Annotated[int, Range(1, 10**7)] = 1000
    size: Annotated[int, Range(8, 1024)] = 60
    seed: Seed = 0
    missing: Share = 1 / 3
    skew: Annotated[float, Range(1e-3, 1e3)] = 1.0
    noisy: Annotated[str, Known(TASKS, "")] = ""
    noise: Share = 0.0


def paint(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light from one side, and a grain."""
    size = image.shape[0]
    angle, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.35)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    light = 1 + strength * (x * math.cos(angle) + y * math.sin(angle))
    noise = rng.normal(0, rng.uniform(1, 7), (size, size, 1)).astype(np.float32)
    return np.clip(image * light[..., None] + noise, 0, 255).astype(np.uint8)


def charcoal(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Dark strokes along edges and slanted hatching in the shadows, on rough grey paper."""
    size = image.shape[0]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    blurred = cv2.GaussianBlur(grey, (0, 0), size / 28)
    edges = np.clip((blurred - grey) * 0.6, 0, 150) + 0.08 * np.abs(cv2.Laplacian(grey, cv2.CV_32F))
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    slope, period = rng.uniform(0.5, 1.3), size / rng.uniform(20, 26)
    hatch = 0.5 + 0.5 * np.sin(2 * math.pi * (x + slope * y) / period)
    shadow = np.clip((150 - blurred) / 150, 0, 1) * hatch * 40
    rough = cv2.resize(rng.normal(0, 1, (size // 2, size // 2)).astype(np.float32), (size, size)) * rng.uniform(3, 7)
    paper = rng.uniform(215, 250) + rough + rng.normal(0, 4, (size, size)).astype(np.float32)
    wash = 0.2 + 0.8 * cv2.GaussianBlur(grey, (0, 0), size / 70) / 255  # smudged with a finger
    picture = np.clip(paper * wash - edges - shadow, 0, 255)
    tone = np.array([1.0, 0.97, 0.92], np.float32)
    return np.clip(picture[..., None] * tone, 0, 255).astype(np.uint8)


STYLES.add("paint", Style(ink=(45, 30, 35), line=0.012, stretch=(1.0, 1.0), finish=paint))
STYLES.add("charcoal", Style(ink=(15, 15, 15), line=0.012, stretch=(0.88, 1.08), finish=charcoal))

SKINS = ((255, 224, 196), (241, 194, 150), (224, 172, 120), (198, 134, 90), (150, 98, 66), (105, 68, 48))
HAIRS = ((20, 16, 16), (45, 30, 24), (75, 46, 30), (88, 40, 24))


def draw_face(seed: int, index: int, *, style: str = "paint", size: int = 60, missing: float = 0.0, skew: float = 1.0) -> Drawn:
    """Draws one face; the same arguments always give the same one.

    Args:
      missing: probability that a task's label is left out; one label always stays.
      skew: how many times as frequent as its last class a task's first one is.

    Raises UserError for an unknown style.
    """
    drawn = STYLES.get(style)
    rng = np.random.default_rng((seed, index))
    labels = {task.name: _draw_class(task, skew, rng) for task in (AGE, GENDER, EMOTION)}
    traits = make_traits(labels, rng)
    image = drawn.finish(_picture(traits, drawn, size, rng), rng)
    dropped = rng.random(3) < missing
    dropped[rng.integers(3)] = False
    kept = {task: MISSING if drop else label for (task, label), drop in zip(labels.items(), dropped, strict=True)}
    return Drawn(image, years_of(traits.stage), kept)


def _draw_class(task: Task, skew: float, rng: np.random.Generator) -> int:
    if skew == 1:
        return int(rng.integers(task.num_classes))
    share = np.geomspace(skew, 1, task.num_classes)
    return int(rng.choice(task.num_classes, p=share / share.sum()))


def years_of(stage: float) -> float:
    """Years of age at a stage: the groups are one unit long each."""
    return float(np.interp(stage, range(10), (*AGE_STARTS, 90)))


def make_traits(labels: dict[str, int], rng: np.random.Generator) -> Traits:
    """A person of the labelled age group, gender and emotion; all else at random."""
    stage = labels["age"] + rng.uniform(0.3, 0.7)
    expression = EXPRESSIONS[EMOTION.classes[labels["emotion"]]]
    intensity = rng.uniform(1.15, 1.45)
    expression = replace(expression, **{name: value * intensity for name, value in vars(expression).items()})
    female = GENDER.classes[labels["gender"]] == "female"
    position = rng.uniform(0, len(SKINS) - 1)
    skin = mix(SKINS[int(position)], SKINS[int(position) + 1], position % 1)
    return Traits(
        stage=stage,
        female=female,
        expression=expression,
        skin=skin,
        hair=HAIRS[rng.integers(len(HAIRS))],
        cloth=tuple(rng.uniform(30, 230, 3)),
        lips=mix(skin, (180, 40, 60), rng.uniform(0.5, 0.9)),
        long_hair=bool(rng.random() < (0.6 if female else 0.3)),
        hair_side=rng.uniform(-1, 1),
        glasses=bool(rng.random() < 0.12),
        hat=bool(rng.random() < 0.08),
        beard=not female and stage > 2.6 and bool(rng.random() < 0.35),
        gaze=tuple(rng.uniform(-1, 1, 2)),
        turn=rng.uniform(-0.8, 0.8),
    )


def _picture(traits: Traits, style: Style, size: int, rng: np.random.Generator) -> np.ndarray:
    """The person before a background, posed at random: uint8 [size, size, 3]."""
    side = size * SUPERSAMPLING
    image = _background(side, rng)
    angle, zoom = math.radians(rng.uniform(-12, 12)), side * rng.uniform(0.38, 0.46)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    mirror = np.diag([-1.0 if rng.random() < 0.5 else 1.0, 1.0])
    matrix = np.column_stack([zoom * turn @ np.diag(style.stretch) @ mirror, side * (0.5 + rng.uniform(-0.055, 0.055, 2) + (0, 0.03))])
    draw_person(Canvas(image, matrix, side * style.line), traits, style.ink)
    if rng.random() < 0.08:  # something in front
        x = rng.uniform(0, side, 2)
        cv2.line(image, (int(x[0]), 0), (int(x[1]), side), tuple(rng.uniform(0, 255, 3)), max(2, side // 16), cv2.LINE_AA)
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), SUPERSAMPLING * rng.uniform(0.3, 0.6))
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def _background(side: int, rng: np.random.Generator) -> np.ndarray:
    """One colour, a slope from one to another, or stripes: uint8 [side, side, 3]."""
    first, second = rng.uniform(20, 245, (2, 3))
    kind = rng.integers(3)
    if kind == 0:
        return np.full((side, side, 3), first, np.uint8)
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[0 : 1 : side * 1j, 0 : 1 : side * 1j].astype(np.float32)
    along = x * math.cos(angle) + y * math.sin(angle)
    share = 0.5 + 0.5 * np.sin(along * (2.0 if kind == 1 else rng.uniform(6, 14)))
    return (first + share[..., None] * (second - first)).astype(np.uint8)
