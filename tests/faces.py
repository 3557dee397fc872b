"""Small data sets on disk, in the layouts that users have."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from jaxface.data.synthetic import draw_face
from jaxface.data.tasks import AGE, EMOTION, GENDER


def write_photo(path: Path, seed: int, size: int = 48) -> dict[str, int]:
    """Writes a drawn face as a JPEG and returns its labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    face = draw_face(seed, 0, size=size)
    cv2.imwrite(str(path), cv2.cvtColor(face.image, cv2.COLOR_RGB2BGR))
    return face.labels


def write_raf_db(folder: Path, train: int = 12, test: int = 4) -> None:
    """A data set in RAF-DB's layout."""
    lines = []
    for split, count in (("train", train), ("test", test)):
        for index in range(count):
            name = f"{split}_{index + 1:05d}"
            labels = write_photo(folder / "basic/Image/aligned" / f"{name}_aligned.jpg", seed=len(lines))
            lines.append(f"{name}.jpg {labels['emotion'] + 1}")
    (folder / "basic/EmoLabel").mkdir(parents=True)
    (folder / "basic/EmoLabel/list_patition_label.txt").write_text("\n".join(lines) + "\n")


def write_manifest(folder: Path, count: int = 24) -> Path:
    """A table with `path,age,gender,emotion,split`, a third of the labels left out."""
    rows = ["path,age,gender,emotion,split"]
    for index in range(count):
        labels = write_photo(folder / f"photos/{index}.jpg", seed=index)
        cells = ["" if index % 3 == column else task.classes[labels[task.name]] for column, task in enumerate((AGE, GENDER, EMOTION))]
        rows.append(f"photos/{index}.jpg,{','.join(cells)},{'test' if index % 4 == 3 else 'train'}")
    path = folder / "manifest.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [height, width, 3]"""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_video(path: Path, frames: int, size: int = 64, rate: float = 10.0) -> None:
    """A grey video whose frame k has the brightness 10 k + 20."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, (size, size))
    for number in range(frames):
        writer.write(np.full((size, size, 3), 10 * number + 20, np.uint8))
    writer.release()
