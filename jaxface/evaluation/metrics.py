"""What a model's answers are worth: pure functions of NumPy arrays.

All but the calibration error are functions of a confusion matrix `[..., C, C]` (rows the labels, columns the predictions), so that
one multinomial draw of matrices bootstraps any of them. A class that the labels do not hold has no recall and counts in no mean,
also where it was predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from jaxface.data.shares import softmax
from jaxface.data.tasks import MISSING, Task, known
from jaxface.errors import UserError
from jaxface.evaluation.predictions import Predictions

Statistic = Callable[[np.ndarray], np.ndarray]

TEST_SETS: Mapping[str, tuple[str, ...]] = {
    "emotion": ("rafdb",),
    "age": ("utkface", "fairface", "vggface2"),
    "gender": ("utkface", "fairface", "vggface2"),
}
"""The data sets that the thesis tests each task on (Table 3.1 and section 2.7), as `source_key` names them."""

ESTIMATED_LABELS: Mapping[str, Collection[str]] = {"age": frozenset({"vggface2"})}
"""Per task the sources whose labels were estimated by another model: left out of the task's average (thesis, chapter 4)."""


probabilities = softmax


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts `[C, C]`, rows the labels, from labels and predicted classes `[N]`; records labelled `MISSING` are left out.

    Raises ValueError for a label or prediction outside the classes.
    """
    there = labels != MISSING
    labels, predicted = labels[there], predicted[there]
    for name, values in (("label", labels), ("prediction", predicted)):
        if values.size and not (values.min() >= 0 and values.max() < num_classes):
            raise ValueError(f"a {name} lies outside 0 to {num_classes - 1}")
    return np.bincount(labels * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where whole is 0."""
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, np.nan), where=np.asarray(whole) > 0)


def _mean_over_present(values: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    present = matrix.sum(axis=-1) > 0
    return _share(np.where(present, values, 0.0).sum(axis=-1), present.sum(axis=-1))


def _hits(matrix: np.ndarray) -> np.ndarray:
    return np.diagonal(matrix, axis1=-2, axis2=-1)


def _distances(matrix: np.ndarray) -> np.ndarray:
    index = np.arange(matrix.shape[-1])
    return np.abs(index[:, None] - index)


def accuracy(matrix: np.ndarray) -> np.ndarray:
    """Share of right predictions; NaN where nothing is labelled."""
    return _share(_hits(matrix).sum(axis=-1), matrix.sum(axis=(-2, -1)))


def recall(matrix: np.ndarray) -> np.ndarray:
    """Per class `[..., C]` the share of its records that are predicted as it; NaN for a class without records."""
    return _share(_hits(matrix), matrix.sum(axis=-1))


def precision(matrix: np.ndarray) -> np.ndarray:
    """Per class `[..., C]` the share of predictions of it that are right; NaN for a class that is never predicted."""
    return _share(_hits(matrix), matrix.sum(axis=-2))


def balanced_accuracy(matrix: np.ndarray) -> np.ndarray:
    """Mean recall over the classes that the labels hold."""
    return _mean_over_present(recall(matrix), matrix)


def macro_f1(matrix: np.ndarray) -> np.ndarray:
    """Mean F1 over the classes that the labels hold."""
    return _mean_over_present(_share(2 * _hits(matrix), matrix.sum(axis=-1) + matrix.sum(axis=-2)), matrix)


def off_by_one_accuracy(matrix: np.ndarray) -> np.ndarray:
    """Share of predictions at most one class away, for classes with an order."""
    return _share((matrix * (_distances(matrix) <= 1)).sum(axis=(-2, -1)), matrix.sum(axis=(-2, -1)))


def mean_absolute_error(matrix: np.ndarray) -> np.ndarray:
    """Mean distance in classes, for classes with an order."""
    return _share((matrix * _distances(matrix)).sum(axis=(-2, -1)), matrix.sum(axis=(-2, -1)))


def majority_share(matrix: np.ndarray) -> np.ndarray:
    """Accuracy of always answering the labels' most frequent class."""
    return _share(matrix.sum(axis=-1).max(axis=-1), matrix.sum(axis=(-2, -1)))


def bootstrap_interval(
    matrix: np.ndarray, statistic: Statistic, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic, (low, high).

    Args:
      matrix: confusion matrix `[C, C]`, which resamples single records; or one matrix per unit `[G, C, C]` where records belong
        together (a person's photos), which resamples whole units.
      statistic: function of confusion matrices, such as `accuracy`.
    """
    random = np.random.default_rng(seed)
    flat = matrix.reshape(*matrix.shape[:-2], -1)
    if matrix.ndim == 2:
        if flat.sum() == 0:
            return np.nan, np.nan
        draws = random.multinomial(flat.sum(), flat / flat.sum(), size=resamples)
    else:
        units = len(flat)
        draws = np.stack([random.multinomial(units, np.full(units, 1 / units)) @ flat for _ in range(resamples)])
    values = statistic(draws.reshape(resamples, *matrix.shape[-2:]))
    low, high = np.nanquantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Reliability:
    """Confidence bins `[B]`: mean confidence and accuracy (NaN in an empty bin) and the number of records."""

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray

    @property
    def calibration_error(self) -> float:
        """Expected calibration error (Guo et al. 2017): the gap of confidence and accuracy, weighted by the bins' counts."""
        full = self.count > 0
        if not full.any():
            return float("nan")
        return float(np.average(np.abs(self.confidence - self.accuracy)[full], weights=self.count[full]))


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> Reliability:
    """Bins records by the probability of the predicted class, in bins of equal width, closed above.

    Args:
      probabilities: `[N, C]`.
      labels: `[N]`; records labelled `MISSING` are left out.
    """
    there = labels != MISSING
    confidence = probabilities[there].max(axis=-1, initial=0.0)
    right = probabilities[there].argmax(axis=-1) == labels[there]
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(bin_of, minlength=bins)
    return Reliability(
        confidence=_share(np.bincount(bin_of, weights=confidence, minlength=bins), count),
        accuracy=_share(np.bincount(bin_of, weights=right, minlength=bins), count),
        count=count,
    )


def source_key(source: str) -> str:
    """A data set's name in small letters and digits only: `RAF-DB` and `raf_db` are `rafdb`."""
    return "".join(letter for letter in source.lower() if letter.isalnum())


def averaged_sources(task: str, sources: Iterable[str]) -> tuple[str, ...]:
    """Those data sets that a task's average is over: the thesis's test sets of the task if one of them is there, else all.

    Data sets whose labels another model estimated are left out in any case.
    """
    sources = tuple(sources)
    thesis = [source for source in sources if source_key(source) in TEST_SETS.get(task, ())]
    return tuple(source for source in thesis or sources if source_key(source) not in ESTIMATED_LABELS.get(task, ()))


def average_over_sources(task: str, values: Mapping[str, float]) -> float:
    """The thesis's "average": the plain mean of the figures of `averaged_sources`, whatever the sets' sizes; NaN if none remains."""
    kept = [values[source] for source in averaged_sources(task, values)]
    return float(np.mean(kept)) if kept else float("nan")


def overall(averages: Mapping[str, float]) -> float:
    """The thesis's "overall": the plain mean of the tasks' averages; NaN if there is none."""
    return float(np.mean(list(averages.values()))) if averages else float("nan")


def require_finite(predictions: Predictions, task: Task) -> None:
    """Raises UserError for logits that are not finite."""
    logits = predictions.logits[task.name]
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=-1))
    if broken.size:
        raise UserError(
            f"task {task.name}: the logits of {broken.size} of {len(logits)} records are not finite (first: {predictions.id[broken[0]]}); "
            "the model has diverged"
        )


def task_matrix(predictions: Predictions, task: Task, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
    """Confusion matrix `[C, C]` of a task, over all records or the given rows. Raises UserError for logits that are not finite."""
    require_finite(predictions, task)
    return confusion_matrix(predictions.labels[task.name][rows], predictions.predicted(task.name)[rows], task.num_classes)


def units(predictions: Predictions, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """The rows `[n]` with a label of the task, and the number `[n]` of what each belongs to: its person, or itself where it has none."""
    rows = np.flatnonzero(known(predictions.labels[task.name]))
    names = [predictions.person[row] or row for row in rows]  # a number is nobody's name
    number = {name: index for index, name in enumerate(dict.fromkeys(names))}
    return rows, np.array([number[name] for name in names], np.int64)


def person_matrices(predictions: Predictions, task: Task) -> np.ndarray:
    """What `bootstrap_interval` resamples: a matrix per person `[G, C, C]` if several records are of one, else the plain one `[C, C]`.

    A record of an unknown person stands for itself.
    """
    rows, person = units(predictions, task)
    count = person.max(initial=-1) + 1
    if count == len(rows):
        return task_matrix(predictions, task)
    matrices = np.zeros((count, task.num_classes, task.num_classes), np.int64)
    np.add.at(matrices, (person, predictions.labels[task.name][rows], predictions.predicted(task.name)[rows]), 1)
    return matrices


def bootstrap_rows(
    predictions: Predictions, task: Task, statistics: Mapping[str, Callable[[np.ndarray], float]], *, resamples: int = 500, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % percentile bootstrap intervals of functions of labelled rows, over whole persons where several records are of one."""
    rows, person = units(predictions, task)
    if not len(rows):
        return {}
    random, order = np.random.default_rng(seed), np.argsort(person, kind="stable")
    starts = np.searchsorted(person[order], np.arange(person.max() + 2))
    values: dict[str, list[float]] = {name: [] for name in statistics}
    for _ in range(resamples):
        drawn = random.integers(0, len(starts) - 1, len(starts) - 1)
        if len(starts) - 1 == len(rows):
            chosen = rows[order[drawn]]
        else:
            chosen = rows[order[np.concatenate([np.arange(starts[unit], starts[unit + 1]) for unit in drawn])]]
        for name, statistic in statistics.items():
            values[name].append(statistic(chosen))
    low_high = {name: np.nanquantile(found, [0.025, 0.975]) for name, found in values.items() if np.isfinite(found).any()}
    return {name: (float(low), float(high)) for name, (low, high) in low_high.items()}


def source_matrices(predictions: Predictions, task: Task) -> dict[str, np.ndarray]:
    """Confusion matrix `[C, C]` of a task on each source that has labels of it."""
    sources = np.unique(predictions.source[known(predictions.labels[task.name])])
    return {str(source): task_matrix(predictions, task, predictions.source == source) for source in sources}


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """The sum over the thresholds of precision times what recall gains, from labels 0 or 1 and scores `[n]`; NaN without a positive."""
    order = np.argsort(-scores, kind="stable")
    labels, scores = labels[order], scores[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1) if len(scores) else np.zeros(0, int)  # of equal scores
    hits = np.cumsum(labels)[last]
    if not len(hits) or not hits[-1]:
        return float("nan")
    return float((np.diff(hits, prepend=0) / hits[-1] * hits / (last + 1)).sum())


def r_squared(error: np.ndarray, labels: np.ndarray) -> float:
    """The share of the labels' variance `[n]` that the errors leave out; NaN where all labels are one number."""
    spread = np.square(labels - labels.mean()).sum()
    return float(1 - np.square(error).sum() / spread) if spread else float("nan")
