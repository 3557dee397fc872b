"""The figures of a task by its kind: one entry each, whose figures every command, table and page asks for by name.

Another kind's is a subclass of `Measure` below `@MEASURES.register("name")`, as a class or an instance of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxface.data.tasks import MISSING, Task, known
from jaxface.evaluation import metrics
from jaxface.evaluation.predictions import Predictions
from jaxface.registry import Registry

Json = dict[str, Any]
Figures = dict[str, Any]


class Measure:
    """Figures of classes; the base of the others. All shares are between 0 and 1, and `accuracy` is the share of right answers of any kind.

    Attributes:
      titles: headings of the figures that tables show, by their key.
      shares: those of them that are shares, and shown in percent.
      confuses: whether answers are single classes, so that there is a confusion matrix.
    """

    confuses = True

    titles: Mapping[str, str] = {
        "macro_f1": "macro F1",
        "off_by_one": "within one class",
        "mean_absolute_error": "mean distance in classes",
        "calibration_error": "calibration error",
        "average_accuracy": "mean over data sets",
    }
    shares = ("accuracy", "balanced_accuracy", "macro_f1", "off_by_one", "calibration_error", "average_accuracy", "majority")
    statistics: Mapping[str, metrics.Statistic] = {
        "accuracy": metrics.accuracy,
        "balanced_accuracy": metrics.balanced_accuracy,
        "macro_f1": metrics.macro_f1,
    }
    """Figures with a bootstrap interval, as functions of confusion matrices."""

    def figures(self, predictions: Predictions, task: Task) -> Figures:
        """By name; the records have labels of the task, and finite logits."""
        matrix = metrics.task_matrix(predictions, task)
        bins = metrics.reliability(predictions.shares(task), predictions.labels[task.name])
        return {
            "count": matrix.sum(),
            "accuracy": metrics.accuracy(matrix),
            "balanced_accuracy": metrics.balanced_accuracy(matrix),
            "macro_f1": metrics.macro_f1(matrix),
            "majority": metrics.majority_share(matrix),
            "calibration_error": bins.calibration_error if predictions.says_how_sure(task) else float("nan"),
        }

    def loss(self, predictions: Predictions, task: Task) -> float:
        """The mean over the labelled records of what answers are trained to make small: here the cross-entropy."""
        labels = predictions.labels[task.name]
        there = known(labels)
        return float(-np.log(np.maximum(predictions.shares(task)[there, labels[there]], 1e-30)).mean())

    def intervals(self, predictions: Predictions, task: Task) -> dict[str, tuple[float, float]]:
        """95 % bootstrap intervals, over whole persons where several records are of one."""
        matrices = metrics.person_matrices(predictions, task)
        return {name: metrics.bootstrap_interval(matrices, statistic) for name, statistic in self.statistics.items()}

    def details(self, predictions: Predictions, task: Task) -> Json:
        """What is said class by class."""
        matrix = metrics.task_matrix(predictions, task)
        columns = {"recall": metrics.recall(matrix), "precision": metrics.precision(matrix), "records": matrix.sum(1)}
        classes = {name: {key: values[i].item() for key, values in columns.items()} for i, name in enumerate(task.classes)}
        return {"classes": classes, "confusion": matrix.tolist()}

    def calibration(self, predictions: Predictions, task: Task, temperature: float | None) -> Json:
        """Expected calibration error and mean negative log-likelihood, as the model is and with its temperature."""
        result: Json = {"temperature": temperature}
        if not predictions.says_how_sure(task):
            return result
        labels = predictions.labels[task.name]
        there = known(labels)
        for suffix, divisor in (("", 1.0), *((("_calibrated", temperature),) if temperature else ())):
            shares = metrics.probabilities(predictions.logits[task.name] / divisor)
            result[f"error{suffix}"] = metrics.reliability(shares, labels).calibration_error
            chosen = shares[there, labels[there]]
            result[f"negative_log_likelihood{suffix}"] = float(-np.log(np.maximum(chosen, 1e-30)).mean())
        return result

    def misfit(self, predictions: Predictions, task: Task) -> np.ndarray:
        """How ill each answer fits its label `[N]`: here the probability that it does not give it; every record has a label."""
        labels = predictions.labels[task.name]
        return 1 - predictions.shares(task)[np.arange(len(labels)), labels]

    def set_size(self, predictions: Predictions, task: Task, limit: float) -> np.ndarray:
        """Classes, or the width of the range `[N]`, that fit no worse than `limit`."""
        return (1 - predictions.shares(task) <= limit).sum(-1)

    def doubt(self, predictions: Predictions, task: Task) -> tuple[np.ndarray, np.ndarray]:
        """Of each record `[N]` what the answer gives its label (the less the harder; without one anything), and the answer's words."""
        labels, shares = predictions.labels[task.name], predictions.shares(task)
        return shares[np.arange(len(shares)), labels], np.array([task.classes[best] for best in shares.argmax(-1)], object)


MEASURES: Registry[Measure] = Registry("measure", {"classification": Measure()})


def measure_of(task: Task) -> Measure:
    """The figures of the task's kind."""
    return MEASURES.get(task.kind)


class OrdinalMeasure(Measure):
    """Of classes in an order also how far off answers are."""

    statistics: Mapping[str, metrics.Statistic] = {
        **Measure.statistics,
        "off_by_one": metrics.off_by_one_accuracy,
        "mean_absolute_error": metrics.mean_absolute_error,
    }

    def figures(self, predictions: Predictions, task: Task) -> Figures:
        matrix = metrics.task_matrix(predictions, task)
        own = {"off_by_one": metrics.off_by_one_accuracy(matrix), "mean_absolute_error": metrics.mean_absolute_error(matrix)}
        return super().figures(predictions, task) | own


class MultiLabelMeasure(Measure):
    """Of several labels at once: mean average precision, F1, and the share of records with every label right."""

    confuses = False
    titles: Mapping[str, str] = {
        "mean_average_precision": "mAP",
        "macro_f1": "macro F1",
        "micro_f1": "micro F1",
        "label_accuracy": "single labels right",
        "calibration_error": "calibration error",
    }
    shares = ("accuracy", "mean_average_precision", "macro_f1", "micro_f1", "label_accuracy", "calibration_error", "majority")

    def figures(self, predictions: Predictions, task: Task) -> Figures:
        labels = predictions.labels[task.name]
        there = known(labels)
        answers = predictions.logits[task.name] > 0
        kinds = np.unique(labels[there], axis=0, return_counts=True)[1]
        return {
            "count": there.sum(),
            "accuracy": predictions.right(task)[there].mean(),
            "label_accuracy": (answers == (labels > 0))[labels != MISSING].mean(),
            "majority": kinds.max() / there.sum(),
            "calibration_error": self.calibration(predictions, task, None).get("error", float("nan")),
            **{name: statistic(np.flatnonzero(there)) for name, statistic in self._statistics(predictions, task).items()},
        }

    def _single(self, predictions: Predictions, task: Task) -> tuple[np.ndarray, np.ndarray]:
        """Every known label by itself, as of two classes: probabilities `[n, 2]` and labels `[n]`."""
        labels = predictions.labels[task.name]
        shares = predictions.shares(task)[labels != MISSING]
        return np.stack([1 - shares, shares], -1), labels[labels != MISSING].astype(np.int64)

    def per_label(self, predictions: Predictions, task: Task, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Records with each label, recall, precision, F1 and average precision `[C]`; NaN where they are not defined."""
        labels, scores = predictions.labels[task.name][rows], predictions.logits[task.name][rows]
        positive, answers = (labels > 0), (scores > 0) & (labels != MISSING)
        hits, records, said = (positive & answers).sum(0), positive.sum(0), answers.sum(0)
        with np.errstate(invalid="ignore"):
            rates = {"recall": hits / records, "precision": hits / said, "f1": 2 * hits / (records + said)}
        columns = [labels[:, index] != MISSING for index in range(task.num_classes)]
        ap = [metrics.average_precision(positive[there, index], scores[there, index]) for index, there in enumerate(columns)]
        return {"records": records, **rates, "average_precision": np.array(ap), "hits": hits, "said": said}

    def _statistics(self, predictions: Predictions, task: Task) -> dict[str, Callable[[np.ndarray], float]]:
        def mean(name: str) -> Callable[[np.ndarray], float]:
            def statistic(rows: np.ndarray) -> float:
                found = self.per_label(predictions, task, rows)
                there = found["records"] > 0
                return float(found[name][there].mean()) if there.any() else float("nan")

            return statistic

        def micro(rows: np.ndarray) -> float:
            found = self.per_label(predictions, task, rows)
            whole = found["records"].sum() + found["said"].sum()
            return float(2 * found["hits"].sum() / whole) if whole else float("nan")

        return {"mean_average_precision": mean("average_precision"), "macro_f1": mean("f1"), "micro_f1": micro}

    def loss(self, predictions: Predictions, task: Task) -> float:
        labels, logits = predictions.labels[task.name], predictions.logits[task.name].astype(np.float64)
        values = np.logaddexp(0, logits) - logits * labels
        each = labels != MISSING
        rows = known(labels)
        return float(((values * each).sum(1)[rows] / each.sum(1)[rows]).mean())

    def intervals(self, predictions: Predictions, task: Task) -> dict[str, tuple[float, float]]:
        right = predictions.right(task)
        statistics = {"accuracy": lambda rows: float(right[rows].mean()), **self._statistics(predictions, task)}
        return metrics.bootstrap_rows(predictions, task, statistics, resamples=200)

    def details(self, predictions: Predictions, task: Task) -> Json:
        found = self.per_label(predictions, task, np.flatnonzero(known(predictions.labels[task.name])))
        kept = ("records", "average_precision", "f1", "recall", "precision")
        return {"classes": {name: {key: found[key][index].item() for key in kept} for index, name in enumerate(task.classes)}}

    def calibration(self, predictions: Predictions, task: Task, temperature: float | None) -> Json:
        if not predictions.says_how_sure(task):
            return {"temperature": None}
        error = metrics.reliability(*self._single(predictions, task)).calibration_error
        return {"temperature": None, "error": error, "negative_log_likelihood": self.loss(predictions, task)}

    def misfit(self, predictions: Predictions, task: Task) -> np.ndarray:
        """Of the label that holds and is given least."""
        return np.where(predictions.labels[task.name] > 0, 1 - predictions.shares(task), 0).max(-1)

    def doubt(self, predictions: Predictions, task: Task) -> tuple[np.ndarray, np.ndarray]:
        labels, shares = predictions.labels[task.name], predictions.shares(task)
        of_label = np.where(labels == MISSING, 1.0, np.where(labels > 0, shares, 1 - shares))
        return of_label.min(-1), np.array([task.of.label_words(task, row > 0.5) for row in shares], object)


class RegressionMeasure(Measure):
    """Of numbers: mean absolute error, share within `task.within`, R2."""

    confuses = False
    titles: Mapping[str, str] = {
        "mean_absolute_error": "mean absolute error",
        "root_mean_squared_error": "root mean squared error",
        "median_absolute_error": "median error",
        "r2": "R²",
        "baseline_error": "mean absolute error of the median",
    }
    shares = ("accuracy", "majority")

    def numbers(self, predictions: Predictions, task: Task) -> tuple[np.ndarray, np.ndarray]:
        """Predicted and labelled numbers `[n]` of the labelled records."""
        labels = predictions.labels[task.name]
        there = known(labels)
        return predictions.predicted(task.name)[there], labels[there]

    def figures(self, predictions: Predictions, task: Task) -> Figures:
        found, labels = self.numbers(predictions, task)
        error = np.abs(found - labels)
        constant = np.abs(labels - np.median(labels))
        return {
            "count": len(labels),
            "accuracy": (error <= task.within).mean(),
            "majority": (constant <= task.within).mean(),
            "mean_absolute_error": error.mean(),
            "root_mean_squared_error": np.sqrt(np.square(error).mean()),
            "median_absolute_error": np.median(error),
            "r2": metrics.r_squared(error, labels),
            "baseline_error": constant.mean(),
        }

    def loss(self, predictions: Predictions, task: Task) -> float:
        """Huber's loss of the standardised numbers."""
        found, labels = self.numbers(predictions, task)
        error = np.abs(found - labels) / task.scale
        return float(np.where(error <= 1, 0.5 * error**2, error - 0.5).mean())

    def intervals(self, predictions: Predictions, task: Task) -> dict[str, tuple[float, float]]:
        labels = predictions.labels[task.name]
        error = predictions.predicted(task.name) - labels

        statistics = {
            "accuracy": lambda rows: float((np.abs(error[rows]) <= task.within).mean()),
            "mean_absolute_error": lambda rows: float(np.abs(error[rows]).mean()),
            "r2": lambda rows: metrics.r_squared(error[rows], labels[rows]),
        }
        return metrics.bootstrap_rows(predictions, task, statistics)

    def details(self, predictions: Predictions, task: Task) -> Json:
        return {"unit": task.unit, "within": task.within}

    def calibration(self, predictions: Predictions, task: Task, temperature: float | None) -> Json:
        return {"temperature": None}

    def misfit(self, predictions: Predictions, task: Task) -> np.ndarray:
        return np.abs(predictions.predicted(task.name) - predictions.labels[task.name])

    def set_size(self, predictions: Predictions, task: Task, limit: float) -> np.ndarray:
        return np.full(len(predictions), 2 * limit)

    def doubt(self, predictions: Predictions, task: Task) -> tuple[np.ndarray, np.ndarray]:
        numbers = predictions.predicted(task.name)
        error = np.nan_to_num(np.abs(numbers - predictions.labels[task.name]), nan=0.0)
        return -error, np.array([task.of.label_words(task, number) for number in numbers], object)


MEASURES.add("ordinal", OrdinalMeasure())
MEASURES.add("multi-label", MultiLabelMeasure())
MEASURES.add("regression", RegressionMeasure())
