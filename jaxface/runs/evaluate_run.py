"""Tests a run's model on prepared data: answers, temperatures, figures, pictures, into a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxface.data.records import HASHES, LABELS
from jaxface.digests import record_digests
from jaxface.errors import UserError, tell
from jaxface.evaluation.groups import read_groups, with_groups
from jaxface.evaluation.predictions import Predictions
from jaxface.evaluation.results import Json, hardest_of, score
from jaxface.evaluation.trust import Caution
from jaxface.evaluation.trust_report import trust
from jaxface.files import aside, finite, read_object, write_json
from jaxface.models.heads import Classifier
from jaxface.runs.base import refuse_idle_places
from jaxface.runs.best import trained_size
from jaxface.runs.config import RANDOM
from jaxface.runs.costs import run_costs
from jaxface.runs.folder import EVALUATION, find_runs
from jaxface.runs.inference import predict_all
from jaxface.runs.model import Trained, load_trained
from jaxface.runs.predictions_file import read_predictions, write_predictions
from jaxface.runs.temperatures import copy_temperatures, read_temperatures, write_temperatures
from jaxface.runs.validation_answers import read_validation, write_validation

VALIDATION = "validation"


Compute = Callable[[np.ndarray], Mapping[str, Any]]
"""uint8 [B, S, S, 3] -> logits of each task."""


def ready(trained: Trained, model: Classifier | Compute) -> tuple[Callable[..., Any], Any]:
    """What `predict_all` takes: a model as a program of JAX and its arrays on every device, or a function and None."""
    from jaxface.devices import replicate
    from jaxface.models.tree import flatten
    from jaxface.runs.inference import make_predict

    if not isinstance(model, Classifier):
        return lambda _, images: (model(images.reshape(-1, *images.shape[2:])), None), None
    arrays, structure = flatten(model)
    return make_predict(structure, trained.config.known), replicate(arrays)


def answer(
    trained: Trained,
    model: tuple[Callable[..., Any], Any],
    sets: Sequence[str],
    split: str,
    *,
    batch_size: int,
    features: bool,
    title: str,
    workers: int = 0,
) -> Predictions:
    """The answers on a split of prepared sets of what `ready` gave. Raises UserError if none of them has it."""
    import jax

    from jaxface.data.pipeline import count_records, eval_batches

    total = count_records(sets, split)
    devices = jax.local_device_count()
    size = -(-batch_size // devices) * devices
    sizes: Json = {"image_size": trained.image_size, "batch_size": size, "framing": trained.framing}
    batches = eval_batches(sets, split, trained.config.tasks, **sizes, workers=workers)
    predict, arrays = model
    return predict_all(predict, arrays, batches, trained.tasks, title=title, total=total, keep_features=features)


def test_split(sets: Sequence[str]) -> str:
    """`test`, or `validation` for sets without one."""
    from jaxface.data.pipeline import count_records

    return "test" if count_records(sets, "test", missing_ok=True) else VALIDATION


def evaluate_run(
    folder: Path,
    sets: Sequence[str] = (),
    split: str | None = None,
    *,
    out: Path | None = None,
    batch_size: int = 64,
    workers: int = 0,
    features: bool = False,
    groups: Sequence[Path] = (),
    keep: bool = False,
    weights: Sequence[Path] = (),
    engine: tuple[str, Compute] | None = None,
    caution: Caution | None = None,
) -> tuple[Predictions, Json]:
    """Runs the model, writes `predictions.parquet` and what `write_scores` writes, and fits temperatures on the run's validation records.

    Args:
      folder: a run folder.
      sets: prepared folders; the run's own if none is named.
      split: of them; `test` where they have one.
      out: the folder to write into; the run's if None. Nothing is written elsewhere.
      batch_size: over all local devices.
      workers: processes that decode images, as far as the work is worth it; 0 does it in threads.
      features: keep the encoder's output with the answers, and in `features_before.parquet` that of the model that training started from.
      groups: further columns of groups (see `read_groups`).
      keep: answers that stand already, of the same model on the same records, are not computed again.
      weights: where else to look for the run's base weights.
      engine: the name of what computes the model instead of JAX, and what does.
      caution: how sure answers have to be; the usual coverage and error if None.

    Returns:
      the answers and the figures.

    Raises UserError for a folder that holds no trained model, or sets that do not hold the split.
    """
    import jax

    from jaxface.data.pipeline import count_records
    from jaxface.runs.data import sets_of_run

    out = out or folder
    columns = [read_groups(path) for path in groups]
    trained = load_trained(folder, weights)
    if not keep:  # of several runs, some may need them
        refuse_idle_places(folder, trained.base, weights)
    own = sets_of_run(trained.config, folder)
    sets = tuple(map(str, sets)) or own
    split = split or test_split(sets)
    if features and engine:
        raise UserError(f"engine {engine[0]} gives no features: evaluate with jax for these")
    about = ({"engine": engine[0]} if engine else {}) | {
        "run": trained.config.name,
        "sets": list(sets),
        "split": split,
        "model": trained.digest,
        "records": content(sets),
    }
    if keep and stands(out, about, features=features):
        return evaluate_again(out, groups, caution)
    options: dict[str, Any] = {"batch_size": min(batch_size, count_records(sets, split)), "workers": workers}  # for all: one program
    model = ready(trained, engine[1] if engine else trained.merged())
    predictions = replace(answer(trained, model, sets, split, title=split, features=features, **options), about=about)
    for name, column in columns:
        predictions = with_groups(predictions, name, column)
    if split != VALIDATION:
        try:
            validation = answer(trained, model, own, VALIDATION, title=VALIDATION, features=False, **options)
            write_temperatures(out, validation, trained.digest)
            write_validation(out, validation, trained.digest)
        except UserError as error:  # the run may have been trained elsewhere
            tell(f"confidence is not calibrated: {error}")
    if out != folder:
        if not read_temperatures(out, trained.digest) and trained.temperatures:
            copy_temperatures(folder, out)
        write_json(out / "config.json", read_object(folder / "config.json"))  # the report asks for it
    write_predictions(out / "predictions.parquet", predictions)
    write_hardest(out / "hardest.npz", sets, split, predictions, trained.image_size)
    write_json(out / "summary.json", run_costs(jax.eval_shape(trained.plain), trained_size(folder), trained.image_size))
    if features and trained.config.encoder.weights not in (None, RANDOM):
        start = answer(trained, ready(trained, trained.before()), sets, split, title="before training", features=True, **options)
        write_predictions(out / "features_before.parquet", replace(start, about=about))
    return predictions, write_scores(out, predictions, read_temperatures(out, trained.digest), caution, groups)


def evaluated_runs(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The runs among and below `paths` that have a trained model, and what else is there. Raises UserError if none has one."""
    runs, others = find_runs(paths)
    trained = [run for run in runs if (run / "best" / "trained.safetensors").is_file()]
    if not trained:
        raise UserError(f"{', '.join(map(str, runs))}: has no best model yet: train for an epoch first")
    return trained, others + [run for run in runs if run not in trained]


def content(sets: Sequence[str]) -> str:
    """SHA-256 of what prepared sets hold: labels and pictures."""
    digest = hashlib.sha256()
    for folder in map(Path, sets):
        for name in (LABELS, HASHES):
            digest.update((folder / name).read_bytes() if (folder / name).is_file() else b"")
    return digest.hexdigest()


def stands(out: Path, about: Json, *, features: bool) -> bool:
    """Whether a folder holds these answers, and the features if they are wanted."""
    path = out / "predictions.parquet"
    if not path.is_file():
        return False
    stored = read_predictions(path)
    kept = stored.features is not None or bool(stored.task_features)
    return all(stored.about.get(key) == about.get(key) for key in ("split", "model", "records", "engine")) and (kept or not features)


def write_hardest(path: Path, sets: Sequence[str], split: str, predictions: Predictions, size: int) -> None:
    """Images of each task's hardest records, uint8 [K, size, size, 3], for the report."""
    from jaxface.data.framing import resize
    from jaxface.data.images import Unreadable, decode
    from jaxface.data.pipeline import Joined

    names = {record for task in predictions.tasks for _, record, *_ in hardest_of(predictions, task)}
    records = Joined(sets, split, ())
    found = {}
    for index in range(len(records)) if names else ():
        with suppress(Unreadable):  # whoever evaluates has said so
            record = records[index]
            if record["id"] in names:
                found[record["id"]] = resize(decode(record["image"]), size)
    images = np.stack(list(found.values())) if found else np.zeros((0, size, size, 3), np.uint8)
    with aside(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, id=np.array(list(found), str), image=images)


def evaluate_again(folder: Path, groups: Sequence[Path] = (), caution: Caution | None = None) -> tuple[Predictions, Json]:
    """The figures of a folder's `predictions.parquet`, without the model. Raises UserError if there is none."""
    predictions = read_predictions(folder / "predictions.parquet")
    for name, column in map(read_groups, groups):
        predictions = with_groups(predictions, name, column)
    if groups:
        write_predictions(folder / "predictions.parquet", predictions)
    return predictions, write_scores(folder, predictions, read_temperatures(folder, predictions.about.get("model")), caution, groups)


def write_scores(
    folder: Path, predictions: Predictions, temperatures: dict[str, float], caution: Caution | None = None, groups: Sequence[Path] = ()
) -> Json:
    """Writes `evaluation.json` and returns the figures that it holds.

    Args:
      caution: how sure answers have to be, where the folder keeps answers on validation records to fit on.
      groups: of the validation records, too, as far as the tables name them.

    Raises UserError for a threshold without such answers.
    """
    validation = None if predictions.about.get("split") == VALIDATION else read_validation(folder, predictions.about.get("model"))
    scores = score(predictions, temperatures)
    if validation is not None:
        for name, column in map(read_groups, groups):
            with suppress(UserError):  # of a table of the test records alone
                validation = with_groups(validation, name, column)
        scores["trust"] = finite(trust(predictions, validation, caution or Caution()))
    elif caution is not None and caution.asked:
        raise UserError(f"{folder}: no answers on validation records to fit on: evaluate the test records of the run with its own sets")
    write_json(folder / "evaluation.json", scores)
    record_digests(folder, EVALUATION)
    return scores
