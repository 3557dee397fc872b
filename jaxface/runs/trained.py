"""A run's best model as those use it who come after training: evaluation, prediction, export."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxface.adapters.methods import merge, shallow_copy
from jaxface.data.tasks import Task, get_task
from jaxface.models.heads import Classifier
from jaxface.runs import model as runs
from jaxface.runs.config import Config
from jaxface.runs.temperatures import read_temperatures


@dataclass(frozen=True)
class Trained:
    """A run's best model.

    Attributes:
      folder: the run folder.
      config: of the run.
      model: the classifier, its adapters as they were trained.
      digest: SHA-256 of the file that holds what trained: it names the model.
      temperatures: of `jaxface.evaluate`, per task; empty before it ran.
    """

    folder: Path
    config: Config
    model: Classifier
    digest: str
    temperatures: Mapping[str, float]

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it predicts."""
        return tuple(map(get_task, self.config.tasks))

    @property
    def image_size(self) -> int:
        """Side in pixels of its input."""
        return self.config.encoder.image_size or self.model.encoder.config.image_size

    def merged(self) -> Classifier:
        """The same model with its adapters merged: it costs what the plain encoder costs."""
        model = shallow_copy(self.model)
        model.encoder = merge(model.encoder)
        return model


def load_trained(folder: Path | str) -> Trained:
    """Reads a run's best model. Raises UserError as `jaxface.runs.model.load_run`."""
    folder = Path(folder)
    config, model = runs.load_run(folder)
    digest = model_digest(folder)
    return Trained(folder, config, model, digest, read_temperatures(folder, digest))


def model_digest(folder: Path) -> str:
    """SHA-256 of what a run has trained."""
    with (folder / "best" / "trained.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
