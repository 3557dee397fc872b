"""Temperature scaling (Guo et al. 2017, section 4.2): one number a task that makes a model's confidence mean what it says."""

from __future__ import annotations

import numpy as np

from jaxface.data.tasks import MISSING, known
from jaxface.evaluation.predictions import Predictions

RANGE = (0.05, 20.0)
"""Temperatures that are looked at."""


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T > 0 for which softmax(logits / T) gives the labels the greatest likelihood; 1 where nothing is labelled.

    Args:
      logits: `[N, C]`.
      labels: `[N]`; records labelled `MISSING` are left out.
    """
    from scipy.optimize import minimize_scalar  # slow to import
    from scipy.special import log_softmax

    known = labels != MISSING
    if not known.any():
        return 1.0
    kept, rows = np.asarray(logits, np.float64)[known], np.arange(known.sum())

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(kept / np.exp(log_temperature), axis=1)[rows, labels[known]].mean())

    return float(np.exp(minimize_scalar(loss, bounds=np.log(RANGE), method="bounded").x))


def fit_temperatures(validation: Predictions) -> dict[str, float]:
    """The temperature of every task that some record has a label of."""
    of_classes = [task for task in validation.tasks if task.kind in ("classification", "ordinal")]
    labelled = [task.name for task in of_classes if known(validation.labels[task.name]).any()]
    return {task: fit_temperature(validation.logits[task], validation.labels[task]) for task in labelled}
