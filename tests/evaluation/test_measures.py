"""The figures of several labels at once and of numbers, against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics as sk

from jaxface.data.tasks import Task
from jaxface.evaluation.measures import measure_of
from jaxface.evaluation.metrics import average_precision
from jaxface.evaluation.predictions import Predictions
from jaxface.evaluation.results import hardest_of, score
from jaxface.evaluation.summary import evaluate_task, mean_losses

MARKS = Task("marks", ("Spot", "trou", "c", "never"), kind="multi-label")
WEIGHT = Task("weight", kind="regression", unit="g", center=50.0, scale=20.0, within=8.0)
STEPS = Task("steps", tuple(map(str, range(0, 110, 10))), kind="regression", within=10.0)


def made(task, labels, logits, **more):
    return Predictions((task,), [str(i) for i in range(len(labels))], {task.name: labels}, {task.name: logits}, **more)


def several(seed, count=80, ties=False):
    random = np.random.default_rng(seed)
    labels = (random.random((count, 4)) < [0.5, 0.2, 0.7, 0]).astype(np.int8)
    logits = (labels + random.normal(0, 1, (count, 4)) - 0.5).astype(np.float32)
    return labels, np.round(logits) if ties else logits


@pytest.mark.parametrize(("seed", "ties"), [(0, False), (1, True), (2, True)])
def test_figures_of_several_labels_are_scikit_learns(seed, ties):
    labels, logits = several(seed, ties=ties)
    found = evaluate_task(made(MARKS, labels, logits), MARKS)
    answers = logits > 0
    there = slice(0, 3)
    expected = {
        "accuracy": sk.accuracy_score(labels, answers),
        "label_accuracy": 1 - sk.hamming_loss(labels, answers),
        "mean_average_precision": sk.average_precision_score(labels[:, there], logits[:, there], average="macro"),
        "macro_f1": sk.f1_score(labels[:, there], answers[:, there], average="macro"),
        "micro_f1": sk.f1_score(labels, answers, average="micro"),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    log_loss = np.mean([sk.log_loss(labels[:, c], 1 / (1 + np.exp(-logits[:, c].astype(float))), labels=[0, 1]) for c in range(4)])
    assert mean_losses(made(MARKS, labels, logits))["marks"] == pytest.approx(log_loss, rel=1e-6)


def test_labels_that_are_not_known_count_nowhere():
    labels, logits = several(3)
    gone = labels.copy()
    gone[::3, 1] = -1
    gone[5] = -1
    found = measure_of(MARKS).details(made(MARKS, gone, logits), MARKS)["classes"]["trou"]
    kept = gone[:, 1] >= 0
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(labels[kept, 1], logits[kept, 1]))
    assert found["records"] == labels[kept, 1].sum()
    assert evaluate_task(made(MARKS, gone, logits), MARKS)["count"] == 79
    assert np.isnan(average_precision(np.zeros(4), np.arange(4.0)))


def test_figures_of_numbers_are_scikit_learns():
    random = np.random.default_rng(0)
    labels = random.uniform(0, 100, 60)
    outputs = ((labels + random.normal(0, 9, 60) - 50) / 20).astype(np.float32)[:, None]
    numbers = outputs[:, 0].astype(float) * 20 + 50
    labels[7] = np.nan
    there = ~np.isnan(labels)
    found = evaluate_task(made(WEIGHT, labels, outputs), WEIGHT)
    assert found["mean_absolute_error"] == pytest.approx(sk.mean_absolute_error(labels[there], numbers[there]), rel=1e-6)
    assert found["root_mean_squared_error"] == pytest.approx(sk.root_mean_squared_error(labels[there], numbers[there]), rel=1e-6)
    assert found["r2"] == pytest.approx(sk.r2_score(labels[there], numbers[there]), rel=1e-6)
    assert found["accuracy"] == pytest.approx(np.mean(np.abs(labels - numbers)[there] <= 8))
    assert found["count"] == 59


def test_a_number_in_steps_is_the_mean_of_its_distribution():
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (30, 11)).astype(np.float32)
    shares = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(1, keepdims=True)
    labels = random.uniform(0, 100, 30)
    found = evaluate_task(made(STEPS, labels, logits), STEPS)
    assert found["mean_absolute_error"] == pytest.approx(sk.mean_absolute_error(labels, shares @ np.arange(0, 110, 10)), rel=1e-5)


def test_intervals_widen_where_records_are_of_few_persons():
    random = np.random.default_rng(1)
    shift = np.repeat(random.normal(0, 20, 8), 25)
    labels, outputs = np.full(200, 50.0), (shift / 20).astype(np.float32)[:, None]
    alone, together = (
        score(made(WEIGHT, labels, outputs, person=person))["tasks"]["weight"]["interval"]["mean_absolute_error"]
        for person in (None, np.repeat([f"p{i}" for i in range(8)], 25))
    )
    error = np.abs(shift).mean()
    assert alone[0] < error < alone[1]
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])


def test_the_hardest_answers_are_the_farthest_from_their_labels():
    labels, outputs = np.array([50.0, 50.0, 50.0, np.nan]), np.float32([[0], [3], [-1], [9]])
    assert [row[1:] for row in hardest_of(made(WEIGHT, labels, outputs), WEIGHT)] == [
        ("1", "weight", "50 g", "110 g"),
        ("2", "weight", "50 g", "30 g"),
    ]
