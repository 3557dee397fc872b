"""A model's answers on its run's validation records, kept beside it: what sets, withheld answers and thresholds are fitted on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jaxface.digests import check_digest
from jaxface.errors import UserError
from jaxface.evaluation.predictions import Predictions
from jaxface.runs.predictions_file import read_predictions, write_predictions

FILE = "predictions_validation.parquet"


def write_validation(folder: Path, validation: Predictions, model: str) -> None:
    """Keeps the answers, with the name of the model that gave them."""
    write_predictions(folder / FILE, replace(validation, about={"model": model, "split": "validation"}))


def read_validation(folder: Path, model: str | None = None) -> Predictions | None:
    """The answers that a run folder keeps; None if it has none, or of another model."""
    check_digest(folder / FILE)
    if not (folder / FILE).is_file():
        return None
    found = read_predictions(folder / FILE)
    return found if model is None or found.about.get("model") == model else None


def require_validation(folder: Path, model: str) -> Predictions:
    """As `read_validation`. Raises UserError where there is none."""
    found = read_validation(folder, model)
    if found is None:
        raise UserError(f"{folder} keeps no answers on validation records to fit on: `python -m jaxface.evaluate {folder}` writes them")
    return found
