"""A run folder: who may write in it, and what it holds for whoever looks at it later.

config.json          the configuration
metrics.jsonl        one line a step or evaluation
checkpoints/         latest states, for exact resume
best/                trained.safetensors (what trained, batch statistics) and info.json (base weights and their hash)
predictions.parquet  the trained model's answers on the test split
digests.json         a hash of each of the files that are finished
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxface.data.task_files import task_from
from jaxface.data.tasks import TASKS, Task
from jaxface.digests import check_digest
from jaxface.errors import UserError
from jaxface.evaluation.predictions import Predictions
from jaxface.files import read_object
from jaxface.imports import require_imports
from jaxface.runs.config import Config, HeadOptions
from jaxface.runs.predictions_file import read_predictions
from jaxface.runs.saved_config import differences, from_dict, to_dict
from jaxface.runs.temperatures import read_temperatures

Row = Mapping[str, Any]

RESULT = "result.json"
"""Written last of all: the run is done."""
OUTCOME = ("config.json", "metrics.jsonl", RESULT, "baselines.json", "faces.npz", "predictions.parquet", "predictions_before.parquet")
"""What training leaves, with a digest of each in `digests.json` from the run's end on."""
EVALUATION = (
    *("predictions.parquet", "predictions_validation.parquet", "calibration.json", "summary.json", "evaluation.json", "hardest.npz"),
    "features_before.parquet",
)
"""What an evaluation writes, likewise."""

FREE = (
    *("after", "out", "name", "log_every", "checkpoint_minutes", "report", "cluster", "bad_steps"),
    *("data.workers", "encoder.remat", "imports", "tasks_file"),
)
"""Options that may change between two parts of one run: they decide what is written, or how fast and in how much memory it trains.

`accumulate` is not among them: batch norm and dropout see a piece at a time."""


ALL_TOKENS = "all"
"""`head.tokens` of runs from before it could be chosen."""


@dataclass(frozen=True)
class Run:
    """A run folder's content; what the folder does not hold is empty or None.

    Attributes:
      path: the folder.
      config: `config.json`.
      rows: `metrics.jsonl`, one mapping a line, in the order of steps; of a step that was logged twice (a resumed run), the later.
      predictions: the trained model's answers on the test split.
      before: those of the model that training started from.
      start: the same with its features, where `jaxface.evaluate --features` ran.
      baselines: per baseline and task an accuracy: `majority`, `pixels`.
      summary: counts of parameters and operations.
      faces: test images by record id, uint8 `[H, W, 3]`.
      hardest: images of the hardest test records, likewise.
      temperatures: per task, that calibrate the answers.
      trust: what `jaxface.evaluate` found of sets, withheld answers and thresholds.
    """

    path: Path
    config: Mapping[str, Any]
    rows: tuple[Row, ...]
    predictions: Predictions | None
    before: Predictions | None
    start: Predictions | None
    baselines: Mapping[str, Mapping[str, float]]
    summary: Mapping[str, Any]
    faces: Mapping[str, np.ndarray]
    hardest: Mapping[str, np.ndarray]
    temperatures: Mapping[str, float]
    trust: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The configuration's name, else the folder's."""
        return str(self.config.get("name") or self.path.resolve().name)

    def option(self, key: str, default: Any = None) -> Any:
        """A value of the nested configuration by its dotted key."""
        value: Any = self.config
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return default
            value = value[part]
        return value

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """The run's tasks: as the predictions describe them, else the known ones that the configuration names."""
        if self.predictions is not None:
            return self.predictions.tasks
        names, own = self.config.get("tasks") or (), self.config.get("definitions") or {}
        known = {**dict(TASKS.items()), **{name: task_from(name, value) for name, value in own.items()}}
        return tuple(known[name] for name in names if isinstance(name, str) and name in known)

    def last(self, split: str) -> Row:
        """The last row of a split; empty if there is none."""
        return next((row for row in reversed(self.rows) if row.get("split") == split), {})

    def series(self, split: str, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and finite values of one key over training, each `[N]`."""
        points = [(row["step"], row[key]) for row in self.rows if row.get("split") == split and isinstance(row.get(key), int | float)]
        steps, values = np.asarray(points, np.float64).reshape(-1, 2).T
        finite = np.isfinite(values)
        return steps[finite], values[finite]

    def summed(self, split: str, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Steps and the sum of several keys `[N]`, where a row has them all."""
        parts = [dict(zip(*(part.tolist() for part in self.series(split, key)), strict=True)) for key in keys]
        steps = [step for step in parts[0] if all(step in part for part in parts)] if parts else []
        return np.asarray(steps, np.float64), np.asarray([sum(part[step] for part in parts) for step in steps], np.float64)


def read_config(folder: str | Path) -> Config:
    """The configuration of a run folder. Raises UserError if it is none."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it has no config.json")
    check_digest(path)
    try:
        value = read_object(path)
        require_imports(dict(value.get("imports") or {}), str(folder))
        value.get("head", {}).setdefault("tokens", ALL_TOKENS)
        return from_dict(Config, value)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: not a configuration of this version ({error})") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def changed_options(folder: Path, config: Config) -> list[str]:
    """The dotted names under which a run's configuration in its folder differs from this one, but for those that may change on the way.

    More epochs than before are such a change: the run goes on.
    """
    saved = read_config(folder)
    names = [name for name in differences(to_dict(config), to_dict(saved)) if not name.startswith(FREE)]
    if saved.definitions is None:  # of a run from before they were kept, whose tasks come from code
        names = [name for name in names if name != "definitions"]
    if saved.head.tokens == ALL_TOKENS and config.head == HeadOptions(config.head.deep, config.head.dropout):
        names = [name for name in names if name != "head.tokens"]  # whether there is a pool, and so no difference, is known later
    return [name for name in names if not (name == "epochs" and config.epochs > saved.epochs)]


def is_finished(folder: Path, config: Config) -> bool:
    """Whether the folder holds the run to the end of that many epochs, or to its early stop."""
    check_digest(folder / RESULT)
    return (folder / RESULT).exists() and config.epochs <= read_config(folder).epochs


def find_runs(paths: Sequence[Path | str]) -> tuple[list[Path], list[Path]]:
    """The run folders among `paths` and, where one is none itself, at any depth below it; and those paths that neither are nor hold one.

    Raises UserError if a path does not exist, or if there is no run at all.
    """
    found: dict[Path, None] = {}
    others: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path}: no such folder")
        below = [path] if (path / "config.json").is_file() else sorted(entry.parent for entry in path.rglob("config.json"))
        found |= dict.fromkeys(below)
        others += [] if below else [path]
    if not found:
        raise UserError(
            f"{', '.join(map(str, others))}: no run folder (none holds a config.json); give one that `python -m jaxface.train` wrote"
        )
    return list(found), others


def read_run(path: Path | str) -> Run:
    """Reads a run folder. Raises UserError if it is none, or names the file and line that cannot be read."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder" if not path.exists() else f"{path}: a file, expected a run folder")
    if not (path / "config.json").is_file():
        raise UserError(f"{path}: not a run folder (it holds no config.json); give the folder that `python -m jaxface.train` wrote")
    for name in ("config.json", RESULT):
        check_digest(path / name)
    return Run(
        path=path,
        config=read_object(path / "config.json"),
        rows=_if_there(path / "metrics.jsonl", read_metrics, ()),
        predictions=_if_there(path / "predictions.parquet", read_predictions, None),
        before=_if_there(path / "predictions_before.parquet", read_predictions, None),
        start=_if_there(path / "features_before.parquet", read_predictions, None),
        baselines=_if_there(path / "baselines.json", read_object, {}),
        summary=_if_there(path / "summary.json", read_object, {}),
        faces=_if_there(path / "faces.npz", _read_faces, {}),
        hardest=_if_there(path / "hardest.npz", _read_faces, {}),
        temperatures=read_temperatures(path),
        trust=_if_there(path / "evaluation.json", read_object, {}).get("trust") or {},
    )


def read_metrics(path: Path | str) -> tuple[Row, ...]:
    """Reads `metrics.jsonl`, ordered by step; of rows with the same split and step the last one counts.

    A last line without its line feed that does not parse is what a killed run leaves, and is ignored.

    Raises:
      UserError: with file and line, for any other line that is not a JSON object with `step` and `split`.
    """
    *lines, unfinished = Path(path).read_bytes().split(b"\n")
    rows: dict[tuple[str, float], Row] = {}
    for number, line in enumerate([*lines, unfinished], start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            key = (row["split"], float(row["step"]))
            if not isinstance(row["split"], str) or isinstance(row["step"], str) or math.isnan(key[1]):
                raise ValueError
        except (ValueError, TypeError, KeyError):
            if number > len(lines):
                break
            raise UserError(f"{path}:{number}: not a JSON object with `step` and `split`; mend or delete the line") from None
        rows.pop(key, None)
        rows[key] = row
    return tuple(sorted(rows.values(), key=lambda row: row["step"]))


def _if_there(path: Path, read: Callable[[Path], Any], otherwise: Any) -> Any:
    check_digest(path)
    return read(path) if path.exists() else otherwise


def _read_faces(path: Path) -> Mapping[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            ids, images = arrays["id"], arrays["image"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not readable as arrays `id` and `image` ({error})") from None
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or ids.shape != images.shape[:1]:
        raise UserError(f"{path}: got id {ids.shape} and image {images.dtype} {images.shape}, expected [K] and uint8 [K, H, W, 3]")
    return {str(name): image for name, image in zip(ids, images, strict=True)}
