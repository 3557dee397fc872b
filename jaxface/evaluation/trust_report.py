"""What the fitted sets, withheld answers and thresholds of `jaxface.evaluation.trust` are worth on other records, as JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxface.data.tasks import Task, known
from jaxface.evaluation.groups import FEWEST, attributes
from jaxface.evaluation.measures import measure_of
from jaxface.evaluation.predictions import Predictions
from jaxface.evaluation.trust import (
    Abstention,
    Caution,
    Sets,
    Threshold,
    chances,
    confidence,
    misfit,
    numbers_of,
    share,
    threshold_task,
    truly_above,
)

Json = dict[str, Any]
COVERAGE, MOST_ERRORS = 0.9, 0.05
"""What is stated where nothing is asked for."""


def trust(predictions: Predictions, validation: Predictions, caution: Caution) -> Json:
    """Per task the sets at a coverage and the answers at an error, and, where asked for, the threshold of an age.

    Args:
      predictions: on records that nothing was fitted on.
      validation: of the same model on its validation records.

    Raises UserError for a threshold that no task has.
    """
    found: Json = {"fitted_on": len(validation), "tasks": {}}
    for task in predictions.tasks:
        if known(validation.labels[task.name]).any() and known(predictions.labels[task.name]).any():
            own = {"kind": task.kind} | _sets(predictions, validation, task, caution.coverage or COVERAGE)
            found["tasks"][task.name] = own | _abstention(predictions, validation, task, caution.most_errors or MOST_ERRORS)
    if caution.threshold_age is not None:
        task = threshold_task(predictions.tasks)
        found["threshold"] = threshold(predictions, validation, task, caution.threshold_age, caution.at_most)
    return found


def _sets(predictions: Predictions, validation: Predictions, task: Task, coverage: float) -> Json:
    sets, rows = Sets.fit(validation, task, coverage), known(predictions.labels[task.name])
    score, size = misfit(predictions, task), measure_of(task).set_size(predictions.rows(rows, [task]), task, sets.limit)
    groups, fitted = attributes(predictions), attributes(validation)
    by_group = {}
    for name, column in groups.items():
        own = Sets.fit(validation, task, coverage, fitted[name]) if name in fitted else sets
        limits = own.limits(column[rows])
        for group in sorted(set(column[rows]) - {""}):
            inside = column[rows] == group
            if inside.sum() >= FEWEST:
                by_group[f"{name}: {group}"] = share(score <= sets.limit, inside) | {"own": share(score <= limits, inside)["rate"]}
    covered = share(score <= sets.limit, np.ones(len(score), bool))
    return {"sets": {"stated": coverage, "limit": sets.limit, "covered": covered, "mean_size": float(size.mean()), "groups": by_group}}


def _abstention(predictions: Predictions, validation: Predictions, task: Task, most_errors: float) -> Json:
    fitted, rows = Abstention.fit(validation, task, most_errors), known(predictions.labels[task.name])
    answers = confidence(predictions, task)[rows] >= fitted.least
    wrong = ~predictions.right(task)[rows]
    return {
        "abstention": {
            "stated": most_errors,
            "least_confidence": fitted.least,
            "answered": share(answers, np.ones(len(answers), bool)),
            "wrong": share(wrong, answers),
            "wrong_without": share(wrong, np.ones(len(answers), bool)),
        }
    }


def threshold(predictions: Predictions, validation: Predictions, task: Task, at: float, at_most: float) -> Json:
    """Who is taken for above and below a threshold wrongly: by the answers as they are, and with the fitted limits, by group, too."""
    fitted = Threshold.fit(validation, task, at, at_most)
    labelled = predictions.rows(known(predictions.labels[task.name]))
    truth, chance, number = (f(labelled) for f in (_truth(task, at), _chance(task, at, fitted), _number(task)))
    said = fitted.decisions(chance)
    rules = {"as_predicted": (chance >= 0.5, chance < 0.5), "fitted": (said == "above", said == "below")}
    if number is not None and fitted.challenge is not None:
        rules["challenge"] = (number > fitted.challenge, np.zeros(len(number), bool))
    columns = {name: column for name, column in attributes(labelled).items() if name.partition(" x ")[0] != task.name}
    return {
        "task": task.name,
        "at": at,
        "at_most": at_most,
        "probability_above": fitted.above,
        "probability_below": fitted.below,
        "challenge_age": fitted.challenge,
        "fitted_on": {"below": fitted.count_below, "above": fitted.count_above},
        "rules": {name: _rates(above, below, truth) for name, (above, below) in rules.items()},
        "groups": _by_group(columns, rules, truth),
    }


def _truth(task: Task, at: float) -> Any:
    return lambda predictions: truly_above(predictions, task, at)


def _chance(task: Task, at: float, fitted: Threshold) -> Any:
    return lambda predictions: chances(predictions, task, at, fitted.residuals)


def _number(task: Task) -> Any:
    return lambda predictions: numbers_of(predictions, task)


def _rates(above: np.ndarray, below: np.ndarray, truth: np.ndarray) -> Json:
    return {
        "false_above": share(above, ~truth),
        "false_below": share(below, truth),
        "unsure": share(~above & ~below, np.ones(len(truth), bool)),
        "true_above": share(above, truth),
    }


def _by_group(columns: Mapping[str, np.ndarray], rules: Mapping[str, tuple[np.ndarray, np.ndarray]], truth: np.ndarray) -> Json:
    """The two wrong rates of each rule in every group with enough records below, or above."""
    found: Json = {}
    for name, column in columns.items():
        for group in sorted(set(column) - {""}):
            inside = column == group
            own = {}
            for rule, (above, below) in rules.items():
                rates = {"false_above": share(above, ~truth & inside), "false_below": share(below, truth & inside)}
                own[rule] = {key: rate for key, rate in rates.items() if rate["records"] >= FEWEST}
            if any(own.values()):
                found[f"{name}: {group}"] = own
    return found
