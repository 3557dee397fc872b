"""YuNet's network by ONNX Runtime, which computes it in less than half of OpenCV's time; what its outputs mean, and which of overlapping
faces stay, are as in OpenCV's `FaceDetectorYN`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

STRIDES = (8, 16, 32)
"""Pixels a cell of each of the network's grids."""
OVERLAP, MOST = 0.3, 5000
"""Of two faces that share more of their area the less certain goes; of so many at most is any looked at."""

Rows = Callable[[np.ndarray], np.ndarray | None]
"""uint8 [H, W, 3] BGR -> faces [N, 15]: x, y, width, height, five points, score; or None."""


def by_onnxruntime(file: Path, threshold: float) -> Rows | None:
    """The network of a file that OpenCV has read; None without the extra `onnx`, and for a network that is unlike YuNet's.

    It has as many threads as OpenCV.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cv2.getNumThreads()
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # one would be kept for every size of a photo
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        model = onnx.load(file)
        for axis, name in enumerate(("height", "width"), 2):  # any, as for OpenCV
            model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        rows = _rows_of(session, threshold)
        rows(np.zeros((40, 70, 3), np.uint8))
    except Exception:  # the library's, whatever it does not like
        return None
    return rows


def _rows_of(session: Any, threshold: float) -> Rows:
    (name,), names = (one.name for one in session.get_inputs()), [output.name for output in session.get_outputs()]

    def rows(image: np.ndarray) -> np.ndarray | None:
        height, width = (-(-side // STRIDES[-1]) * STRIDES[-1] for side in image.shape[:2])
        planes = np.zeros((1, 3, height, width), np.float32)
        planes[0, :, : image.shape[0], : image.shape[1]] = image.transpose(2, 0, 1)
        return faces(dict(zip(names, session.run(None, {name: planes}), strict=True)), width, threshold)

    return rows


def faces(outputs: Mapping[str, np.ndarray], width: int, threshold: float) -> np.ndarray | None:
    """What the network's outputs for a picture of so many pixels say, the most certain first."""
    parts = []
    for stride in STRIDES:
        of_class, face, box, points = (outputs[f"{what}_{stride}"][0] for what in ("cls", "obj", "bbox", "kps"))
        score = np.sqrt(np.clip(of_class, 0, 1) * np.clip(face, 0, 1))[:, 0]
        sure = np.flatnonzero(score >= threshold)
        cell = np.stack([sure % (width // stride), sure // (width // stride)], -1).astype(np.float32)
        size = np.exp(box[sure, 2:]) * stride
        corner = (cell + box[sure, :2]) * stride - size / 2
        marks = (points[sure] + np.tile(cell, 5)) * stride
        parts.append(np.concatenate([corner, size, marks, score[sure, None]], -1))
    rows = np.concatenate(parts)
    rows = rows[np.argsort(-rows[:, 14], kind="stable")[:MOST]]
    if len(rows) < 2:
        return rows if len(rows) else None
    return rows[list(cv2.dnn.NMSBoxes(np.trunc(rows[:, :4]).tolist(), rows[:, 14].tolist(), threshold, OVERLAP, 1.0, MOST))]
