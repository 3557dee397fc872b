"""The pictures that `jaxface.evaluate` leaves beside its figures: confusion matrices and reliability diagrams."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jaxface.data.tasks import known
from jaxface.evaluation import metrics
from jaxface.evaluation.measures import measure_of
from jaxface.evaluation.predictions import Predictions
from jaxface.files import aside
from jaxface.plots import to_png_bytes
from jaxface.report import figures


def write_pictures(folder: Path, predictions: Predictions, temperatures: Mapping[str, float]) -> None:
    """Writes `confusion_TASK.png`, `reliability_TASK.png` and, where the task has a temperature, `reliability_TASK_calibrated.png`."""
    for task in predictions.tasks:
        logits, labels = predictions.logits[task.name], predictions.labels[task.name]
        if not known(labels).any() or not measure_of(task).confuses:
            continue
        pictures = {
            f"confusion_{task.name}": figures.confusion(metrics.task_matrix(predictions, task), task.classes, task.name),
            f"reliability_{task.name}": figures.reliability_diagram(metrics.reliability(metrics.probabilities(logits), labels), task.name),
        }
        if not predictions.says_how_sure(task):
            del pictures[f"reliability_{task.name}"]
        if task.name in temperatures:
            shares = metrics.probabilities(logits / temperatures[task.name])
            title = f"{task.name}, temperature {temperatures[task.name]:.2f}"
            pictures[f"reliability_{task.name}_calibrated"] = figures.reliability_diagram(metrics.reliability(shares, labels), title)
        for name, figure in pictures.items():
            with aside(folder / f"{name}.png") as temporary:
                temporary.write_bytes(to_png_bytes(figure))
