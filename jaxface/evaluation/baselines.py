"""What is reached without a face encoder: the majority class, and a linear model on pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import cv2
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

SIDE = 24
"""Side in pixels of the thumbnails that the linear model sees."""
MOST = 4000
"""Training images of the linear model, at most."""

Batches = Iterable[dict[str, Any]]


def pixel_accuracy(train: Callable[[], Batches], test: Callable[[], Batches], tasks: tuple[str, ...]) -> dict[str, float]:
    """Test accuracy of multinomial logistic regression on grey thumbnails, per task of classes; those without labels are left out."""
    x, y = _thumbnails(train(), tasks)
    x_test, y_test = _thumbnails(test(), tasks)
    result = {}
    for task in tasks:
        known, known_test = y[task] >= 0, y_test[task] >= 0
        if y[task].ndim == 1 and y[task].dtype.kind == "i" and len(set(y[task][known])) > 1 and known_test.any():
            model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=200))
            model.fit(x[known], y[task][known])
            result[task] = float(model.score(x_test[known_test], y_test[task][known_test]))
    return result


def _thumbnails(batches: Batches, tasks: tuple[str, ...]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    images, labels = [], {task: [] for task in tasks}
    for batch in batches:
        valid = np.asarray(batch["valid"])
        for image in np.asarray(batch["image"])[valid]:
            grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
            images.append(cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).ravel() / 255)
        for task in tasks:
            labels[task].append(np.asarray(batch["labels"][task])[valid])
        if len(images) >= MOST:
            break
    return np.asarray(images, np.float32), {task: np.concatenate(parts) for task, parts in labels.items()}
