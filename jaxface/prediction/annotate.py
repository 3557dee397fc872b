"""Annotated pictures: a box and the attributes of each face, on photos and videos."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import cv2
import numpy as np

from jaxface.data.images import Unreadable
from jaxface.errors import UserError
from jaxface.files import aside
from jaxface.prediction.predictor import read_pixels

Json = dict[str, Any]
COLOURS = ((58, 110, 165), (200, 90, 40), (46, 125, 79), (140, 80, 160), (170, 130, 20), (60, 60, 60))
"""Of the faces in turn, RGB."""


def place(folder: Path, path: str, suffix: str | None = None) -> Path:
    """Where the picture of a file goes: below the folder, under the file's own path, so that no two meet."""
    parts = [part.replace(":", "_") if part != ".." else "_up" for part in PurePath(path).parts if part.strip("/\\")]
    target = folder.joinpath(*parts)
    return target if suffix is None else target.with_name(target.name + suffix)


def annotate(image: np.ndarray, faces: Sequence[Json], tasks: Iterable[str]) -> np.ndarray:
    """The image, uint8 [H, W, 3] RGB, with a box around each face and its attributes beside it: a copy."""
    drawn, tasks = image.copy(), list(tasks)
    scale = max(min(image.shape[:2]) / 480, 0.4)
    thick = max(1, round(2 * scale))
    for index, face in enumerate(faces):
        colour = COLOURS[index % len(COLOURS)]
        x0, y0, x1, y1 = (round(edge) for edge in face["box"])
        cv2.rectangle(drawn, (x0, y0), (x1, y1), colour, thick, cv2.LINE_AA)
        lines = [f"{face[task]['class']} {100 * face[task]['confidence']:.0f} %" for task in tasks]
        _write_lines(drawn, lines, (x0, y0, y1), colour, scale)
    return drawn


def _write_lines(image: np.ndarray, lines: Sequence[str], box: tuple[int, int, int], colour: tuple[int, ...], scale: float) -> None:
    """Text on a plate of the box's colour: below the box where there is room, else inside its lower end."""
    font, size, thick = cv2.FONT_HERSHEY_SIMPLEX, 0.5 * scale, max(1, round(scale))
    widths, heights = zip(*(cv2.getTextSize(line, font, size, thick)[0] for line in lines), strict=True)
    step, pad = round(1.5 * max(heights)), round(5 * scale)
    height, width = image.shape[:2]
    left = int(np.clip(box[0], 0, max(width - max(widths) - 2 * pad, 0)))
    top = int(np.clip(box[2], 0, max(height - step * len(lines) - 2 * pad, 0)))
    cv2.rectangle(image, (left, top), (left + max(widths) + 2 * pad, top + step * len(lines) + pad), colour, cv2.FILLED)
    for row, line in enumerate(lines):
        cv2.putText(image, line, (left + pad, top + step * (row + 1)), font, size, (255, 255, 255), thick, cv2.LINE_AA)


def draw_photo(folder: Path, result: Json, tasks: Iterable[str]) -> None:
    """Writes the annotated copy of a photo with faces as JPEG. Raises UserError if it cannot be written."""
    if not result["faces"] or result["frame"] is not None:
        return
    image = annotate(read_pixels(Path(result["path"])), result["faces"], tasks)
    data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    with aside(place(folder, result["path"], ".jpg")) as temporary:
        temporary.write_bytes(data)


def draw_video(folder: Path, path: str, frames: Mapping[int, Sequence[Json]], tasks: Iterable[str]) -> Path:
    """Writes the annotated copy of a video as MP4: a frame that was not looked at keeps the boxes of the last one that was.

    Args:
      frames: the faces by the frame's number.

    Raises UserError if it cannot be read or written.
    """
    capture, tasks = cv2.VideoCapture(path), list(tasks)
    size = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    if not capture.isOpened() or 0 in size:
        raise Unreadable(f"{path}: cannot be read as a video")
    target = place(folder, path, ".mp4")
    with aside(target) as temporary:
        writer_path = temporary.with_suffix(".mp4")  # the suffix tells OpenCV the container
        writer = cv2.VideoWriter(str(writer_path), cv2.VideoWriter.fourcc(*"mp4v"), capture.get(cv2.CAP_PROP_FPS) or 25.0, size)
        if not writer.isOpened():
            raise UserError(f"{target}: this OpenCV writes no MP4 video")
        faces: Sequence[Json] = ()
        number = 0
        while (read := capture.read())[0]:
            faces = frames.get(number, faces)
            image = annotate(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB), faces, tasks)
            writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
            number += 1
        writer.release()
        writer_path.replace(temporary)
    capture.release()
    return target
