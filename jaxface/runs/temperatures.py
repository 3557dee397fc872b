"""The temperatures that a run folder keeps: fitted on validation records, they make confidence mean what it says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxface.digests import check_digest
from jaxface.errors import UserError
from jaxface.evaluation.calibration import fit_temperatures
from jaxface.evaluation.predictions import Predictions
from jaxface.files import read_object, write_json

FILE = "calibration.json"
"""Where a run folder keeps its temperatures."""


def write_temperatures(folder: Path, validation: Predictions, model: str) -> dict[str, float]:
    """Fits temperatures on validation records and keeps them in the run folder, with the name of the model that they belong to."""
    temperatures = fit_temperatures(validation)
    write_json(folder / FILE, {"temperature": temperatures, "records": len(validation), "model": model})
    return temperatures


def copy_temperatures(folder: Path, out: Path) -> None:
    """Keeps a run's temperatures beside answers that are written elsewhere."""
    write_json(out / FILE, read_object(folder / FILE))


def read_temperatures(folder: Path, model: str | None = None) -> dict[str, float]:
    """The temperatures of a run folder; none if it has no file of them, or one that was fitted on another `model`.

    Raises UserError for a file that is not what `write_temperatures` writes.
    """
    path = folder / FILE
    check_digest(path)
    if not path.is_file():
        return {}
    try:
        content = read_object(path)
        temperatures = temperatures_from(content["temperature"])
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: not a file of temperatures ({error}); `python -m jaxface.evaluate {folder}` writes it") from None
    return {} if model is not None and content.get("model") != model else temperatures


def temperatures_from(said: Any) -> dict[str, float]:
    """Temperatures by task, as a file says them. Raises ValueError for what is none: they are numbers above 0."""
    if not isinstance(said, Mapping):
        raise ValueError("expected numbers by task")
    for task, value in said.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise ValueError(f"temperature of {task}: expected a number above 0")
    return {str(task): float(value) for task, value in said.items()}
