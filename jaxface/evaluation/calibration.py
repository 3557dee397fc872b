"""Temperature scaling (Guo et al. 2017, section 4.2): one number a task that makes a model's confidence mean what it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from jaxface.data.tasks import MISSING
from jaxface.errors import UserError
from jaxface.evaluation.predictions import Predictions
from jaxface.files import write_json

FILE = "calibration.json"
"""Where a run folder keeps its temperatures."""
RANGE = (0.05, 20.0)
"""Temperatures that are looked at."""


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T > 0 for which softmax(logits / T) gives the labels the greatest likelihood; 1 where nothing is labelled.

    Args:
      logits: `[N, C]`.
      labels: `[N]`; records labelled `MISSING` are left out.
    """
    known = labels != MISSING
    if not known.any():
        return 1.0
    kept, rows = np.asarray(logits, np.float64)[known], np.arange(known.sum())

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(kept / np.exp(log_temperature), axis=1)[rows, labels[known]].mean())

    return float(np.exp(minimize_scalar(loss, bounds=np.log(RANGE), method="bounded").x))


def fit_temperatures(validation: Predictions) -> dict[str, float]:
    """The temperature of every task that some record has a label of."""
    labelled = [task.name for task in validation.tasks if (validation.labels[task.name] != MISSING).any()]
    return {task: fit_temperature(validation.logits[task], validation.labels[task]) for task in labelled}


def write_temperatures(folder: Path, validation: Predictions, model: str) -> dict[str, float]:
    """Fits temperatures on validation records and keeps them in the run folder, with the name of the model that they belong to."""
    temperatures = fit_temperatures(validation)
    write_json(folder / FILE, {"temperature": temperatures, "records": len(validation), "model": model})
    return temperatures


def read_temperatures(folder: Path, model: str | None = None) -> dict[str, float]:
    """The temperatures of a run folder; none if it has no file of them, or one that was fitted on another `model`.

    Raises UserError for a file that is not what `write_temperatures` writes.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
        temperatures = {str(task): float(value) for task, value in content["temperature"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: not a file of temperatures ({error}); `python -m jaxface.evaluate {folder}` writes it") from None
    return {} if model is not None and content.get("model") != model else temperatures
