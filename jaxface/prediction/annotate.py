"""Annotated pictures: a box and the attributes of each face, on photos and videos."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path, PurePath
from typing import Any

import av
import cv2
import numpy as np

from jaxface.data.apart import frames_apart
from jaxface.data.decoding import BOUNDS
from jaxface.data.images import Unreadable
from jaxface.data.tasks import Task
from jaxface.data.videos import End
from jaxface.files import aside
from jaxface.prediction.predictor import read_pixels

Json = dict[str, Any]
COLOURS = ((58, 110, 165), (200, 90, 40), (46, 125, 79), (140, 80, 160), (170, 130, 20), (60, 60, 60))
"""Of the faces in turn, RGB."""


LONGEST = 255
"""Bytes of a file's name."""


def place(folder: Path, path: str, suffix: str | None = None) -> Path:
    """Where the picture of a file goes: below the folder, under the file's own path, so that no two meet."""
    parts = [part.replace(":", "_") if part != ".." else "_up" for part in PurePath(path).parts if part.strip("/\\")]
    *parents, name = parts or [""]
    name += suffix or ""
    if len(os.fsencode(name)) > LONGEST:
        name = f"{name[: LONGEST // 8]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}{suffix or ''}"
    return folder.joinpath(*parents, name)


Tasks = Iterable[str] | Mapping[str, Task]
"""Tasks by name, or the names of tasks of classes."""


def annotate(image: np.ndarray, faces: Sequence[Json], tasks: Tasks) -> np.ndarray:
    """The image, uint8 [H, W, 3] RGB, with a box around each face and its attributes beside it: a copy."""
    drawn = image.copy()
    known = tasks if isinstance(tasks, Mapping) else {name: Task(name) for name in tasks}
    scale = max(min(image.shape[:2]) / 480, 0.4)
    thick = max(1, round(2 * scale))
    for index, face in enumerate(faces):
        colour = COLOURS[index % len(COLOURS)]
        x0, y0, x1, y1 = (round(edge) for edge in face["box"])
        cv2.rectangle(drawn, (x0, y0), (x1, y1), colour, thick, cv2.LINE_AA)
        lines = [_plain(task.of.words(task, face[name])) for name, task in known.items()]
        _write_lines(drawn, lines, (x0, y0, y1), colour, scale)
    return drawn


def _plain(text: str) -> str:
    """Text in the letters that OpenCV can draw: those without their accents."""
    return "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))


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


def draw_photo(folder: Path, result: Json, tasks: Tasks) -> None:
    """Writes the annotated copy of a photo with faces as JPEG. Raises UserError if it cannot be written."""
    if not result["faces"] or result["frame"] is not None or result.get("frames") is not None:
        return
    image = annotate(read_pixels(Path(result["path"])), result["faces"], tasks)
    data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    with aside(place(folder, result["path"], ".jpg")) as temporary:
        temporary.write_bytes(data)


TICKS = 1000
"""A second, in a drawn video's time."""


def draw_video(folder: Path, path: str, frames: Mapping[int, Sequence[Json]], tasks: Tasks) -> Path:
    """Writes the annotated copy of a video as MP4, each frame at its own time; one that was not looked at keeps the boxes of the last one
    that was.

    Args:
      frames: the faces by the frame's number.

    Raises UserError if it cannot be read or written.
    """
    target, faces, last = place(folder, path, ".mp4"), (), -1
    with aside(target) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", options={"qscale": "4"})
        stream.codec_context.time_base = Fraction(1, TICKS)
        try:
            for frame in frames_apart(path, BOUNDS):
                if isinstance(frame, End):
                    break
                faces = frames.get(frame.number, faces)
                pixels: Any = frame.pixels  # every frame was asked for
                image: Any = annotate(pixels, faces, tasks)
                if last < 0:
                    height, width = (side - side % 2 for side in image.shape[:2])
                    stream.width, stream.height, stream.pix_fmt, stream.codec_context.qmax = width, height, "yuv420p", 6
                picture = av.VideoFrame.from_ndarray(cv2.resize(image, (width, height)) if image.shape[:2] != (height, width) else image)
                seconds = frame.number / 25 if frame.seconds is None else frame.seconds
                last = max(round(seconds * TICKS), last + 1)
                picture.pts, picture.time_base = last, Fraction(1, TICKS)
                container.mux(stream.encode(picture))
        except Unreadable as error:
            raise Unreadable(f"{path}: {error}") from None
        if last >= 0:
            container.mux(stream.encode())
    return target
