"""How sure answers may be: sets that hold the label with a stated probability, answers that are withheld, and thresholds of a number.

All is fitted on validation records, and holds for records like them (exchangeable ones), on average over such sets of records: nothing is
assumed of the model, whatever its confidence is worth (Vovk et al. 2005; Lei et al. 2018, section 2).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from jaxface.data.shares import digits
from jaxface.data.tasks import Task, known
from jaxface.errors import UserError
from jaxface.evaluation.measures import measure_of
from jaxface.evaluation.predictions import Predictions
from jaxface.ranges import Range, ranged, refuse_idle

Json = dict[str, Any]
Strict = Annotated[float, Range(above=0, below=1)]
"""A share that is neither none nor all."""


@ranged()
class Caution:
    """How sure answers have to be; fitted on the run's validation records.

    Attributes:
      coverage: say the set of classes, or the range of a number, that holds the label with this probability.
      most_errors: withhold answers so that at most this share of the others is wrong.
      threshold_age: say how likely an age is at least this many years (of runs on single years, or on an age as a number), and whether it
        is above or below with the errors that --at-most allows.
      at_most: of those below the threshold the share that may be taken for above it, and of those above the share taken for below.
    """

    coverage: Strict | None = None
    most_errors: Strict | None = None
    threshold_age: Annotated[float | None, Range(0, 150)] = None
    at_most: Strict = 0.01

    def __post_init__(self) -> None:
        refuse_idle(self, self.threshold_age is not None, "it is for --threshold-age", "at_most")

    @property
    def asked(self) -> bool:
        """Whether there is anything to fit."""
        return any(value is not None for value in (self.coverage, self.most_errors, self.threshold_age))


def quantile(scores: np.ndarray, miss: float) -> float:
    """The score that a further one exceeds with a probability of `miss`: the (n + 1) (1 - miss)-th smallest of `[n]`.

    Between two of them in proportion, so that the stated share is met on average and not only kept below; infinity where there are too few.
    """
    place = (len(scores) + 1) * (1 - miss)
    if place > len(scores) + 1e-9:
        return math.inf
    return float(np.interp(place, np.arange(1, len(scores) + 1), np.sort(scores)))


def misfit(predictions: Predictions, task: Task) -> np.ndarray:
    """How ill an answer fits its label `[n]`, of the labelled records: what a set leaves out once it is beyond the quantile."""
    return measure_of(task).misfit(predictions.rows(known(predictions.labels[task.name]), [task]), task)


@dataclass(frozen=True)
class Sets:
    """Conformal sets of one task.

    Attributes:
      coverage: the stated one.
      limit: misfit up to which a class is in the set.
      groups: limits of single groups, where they were fitted.
      fitted: records that it was fitted on.
    """

    coverage: float
    limit: float
    fitted: int
    groups: Mapping[str, float]

    @classmethod
    def fit(cls, validation: Predictions, task: Task, coverage: float, groups: np.ndarray | None = None) -> Sets:
        """On labelled records; with groups `[N]` ('' where unknown) each gets a limit of its own, too (Vovk 2012, section 4)."""
        scores, there = misfit(validation, task), known(validation.labels[task.name])
        own = groups[there] if groups is not None else np.full(there.sum(), "", object)
        limits = {str(name): quantile(scores[own == name], 1 - coverage) for name in sorted(set(own)) if name != ""}
        return cls(coverage, quantile(scores, 1 - coverage), len(scores), limits)

    def limits(self, groups: np.ndarray) -> np.ndarray:
        """The limit of each record by its group `[N]`; the common one where that was not fitted."""
        return np.array([self.groups.get(str(name), self.limit) for name in groups])


@dataclass(frozen=True)
class Abstention:
    """From which confidence on answers are given.

    Attributes:
      most_errors: of the answers that are given, the share that may be wrong.
      least: the confidence; infinity where no answer is sure enough.
    """

    most_errors: float
    least: float

    @classmethod
    def fit(cls, validation: Predictions, task: Task, most_errors: float) -> Abstention:
        """The least confidence from which on (wrong + 1) / (answered + 1) is at most `most_errors` on labelled records."""
        rows = known(validation.labels[task.name])
        sure, wrong = confidence(validation, task)[rows], ~validation.right(task)[rows]
        order = np.argsort(-sure, kind="stable")
        errors, answered = np.cumsum(wrong[order]), np.arange(1, len(order) + 1)
        last = np.append(np.diff(sure[order]) != 0, True)  # equal ones are answered together
        good = np.flatnonzero(last & ((errors + 1) / (answered + 1) <= most_errors))
        return cls(most_errors, float(sure[order][good[-1]]) if len(good) else math.inf)


def confidence(predictions: Predictions, task: Task) -> np.ndarray:
    """How sure each answer is `[N]`, for comparison among those of one task."""
    return task.of.confidence(task, predictions.shares(task))


START = re.compile(r"\s*(?:>=?\s*)?(\d+(?:\.\d+)?)")


def starts(task: Task) -> np.ndarray:
    """The number that each class begins with `[C]`: of `10-19` 10, of `34` 34, of `70+` 70; empty where the classes are no numbers."""
    found = [START.match(name) for name in task.classes]
    numbers = np.array([float(match[1]) for match in found if match])
    return numbers if len(numbers) == len(found) and len(numbers) and (np.diff(numbers) > 0).all() else np.zeros(0)


@dataclass(frozen=True)
class Threshold:
    """Whether a number is at least `at`, with errors of both kinds of at most `at_most`.

    Attributes:
      above, below: the probability beyond which it is said to be above, and below which it is said to be below; infinite where there
        were too few records to say so.
      challenge: the predicted number beyond which it is said to be above with the same errors: what a check asks from; None for groups.
      count_below, count_above: validation records on either side.
      residuals: of a plain number, sorted, what labels were beyond what was predicted `[n]`; empty for distributions.
    """

    at: float
    at_most: float
    above: float
    below: float
    challenge: float | None
    count_below: int
    count_above: int
    residuals: np.ndarray

    @classmethod
    def fit(cls, validation: Predictions, task: Task, at: float, at_most: float) -> Threshold:
        """On labelled records. Raises UserError for a task without numbers, and a threshold inside a class."""
        check_threshold(task, at)
        labelled = validation.rows(known(validation.labels[task.name]), [task])
        plain = task.kind == "regression" and not task.classes
        residuals = np.sort(labelled.labels[task.name] - labelled.predicted(task.name)) if plain else np.zeros(0)
        truth = truly_above(labelled, task, at)
        chance, number = chances(labelled, task, at, residuals), numbers_of(labelled, task)
        above = quantile(chance[~truth], at_most)
        below = -quantile(-chance[truth], at_most)
        challenge = None if number is None else quantile(number[~truth], at_most)
        return cls(at, at_most, above, below, challenge, int((~truth).sum()), int(truth.sum()), residuals)

    def decisions(self, chance: np.ndarray) -> np.ndarray:
        """ "above", "below" or "unsure" `[N]` for probabilities of being above; in doubt about both, unsure."""
        high, low = chance > self.above, chance < self.below
        return np.where(high & ~low, "above", np.where(low & ~high, "below", "unsure"))


def check_threshold(task: Task, at: float) -> None:
    """Raises UserError for a task that says nothing of numbers at least `at`."""
    edges = starts(task)
    if task.kind == "regression" and not task.classes:
        return
    if not len(edges):
        raise UserError(f"task {task.name} has no numbers: a threshold needs classes in years, or a number")
    if at not in edges:
        low = max((edge for edge in edges if edge < at), default=edges[0])
        inside = task.classes[int(np.flatnonzero(edges == low)[0])]
        raise UserError(
            f"a threshold of {at:g} lies inside the class {inside} of {task.name} (they begin at {', '.join(f'{e:g}' for e in edges[:12])}"
            f"{', ...' if len(edges) > 12 else ''}): take one of those, or a run on single years (configs/age_years.py)"
        )


def truly_above(predictions: Predictions, task: Task, at: float) -> np.ndarray:
    """Which labels `[N]` are at least `at`."""
    labels = predictions.labels[task.name]
    return labels >= at if labels.dtype.kind == "f" else starts(task)[labels] >= at


def chances(predictions: Predictions, task: Task, at: float, residuals: np.ndarray) -> np.ndarray:
    """`chance_of` every answer."""
    return chance_of(task, predictions.shares(task), at, residuals)


def chance_of(task: Task, shares: np.ndarray, at: float, residuals: np.ndarray) -> np.ndarray:
    """The probability of being at least `at` `[N]`: of a distribution over classes its tail, of a plain number by the residuals.

    Args:
      shares: of the answers `[N, W]`.
    """
    if task.classes:
        return shares @ (starts(task) >= at)
    return 1 - np.searchsorted(residuals, at - shares[:, 0], side="left") / max(len(residuals), 1)


def numbers_of(predictions: Predictions, task: Task) -> np.ndarray | None:
    """The predicted numbers `[N]`, of a distribution its mean; None for classes that are ranges."""
    if task.kind == "regression":
        return predictions.predicted(task.name)
    return predictions.shares(task) @ task.values if len(task.values) else None


def threshold_task(tasks: tuple[Task, ...]) -> Task:
    """The task that says an age: single years, else a number, else groups. Raises UserError if none does."""
    ages = [task for task in tasks if task.name.casefold().startswith(("age", "alter", "âge", "edad")) or task.unit in ("years", "y", "a")]
    ages = [task for task in ages if task.kind == "regression" or len(starts(task))]
    if not ages:
        raise UserError(f"--threshold-age: none of the tasks {', '.join(task.name for task in tasks)} is an age")
    return max(ages, key=lambda task: (task.kind == "regression" or bool(len(task.values)), task.num_classes))


def share(part: np.ndarray, whole: np.ndarray) -> Json:
    """The share of the records `[N]` of `whole` that `part` holds of, with Wilson's 95 % interval."""
    count, found = int(whole.sum()), int((part & whole).sum())
    if not count:
        return {"records": 0, "rate": None, "interval": None}
    from scipy.stats import binomtest  # slow to import

    low, high = binomtest(found, count).proportion_ci(method="wilson")
    return {"records": count, "rate": found / count, "interval": [digits(low), digits(high)]}
