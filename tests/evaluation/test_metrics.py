"""Every figure against scikit-learn or a case worked out by hand."""

import warnings

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jaxface.data.tasks import AGE, EMOTION, GENDER, MISSING, Task
from jaxface.errors import UserError
from jaxface.evaluation import metrics
from jaxface.evaluation.predictions import Predictions
from jaxface.evaluation.summary import summarize

CLASSES = 5


@st.composite
def answers(draw):
    """Labels and predictions `[N]` of a 5-class task, at least one labelled, some missing."""
    count = draw(st.integers(1, 40))
    labels = draw(arrays.arrays(np.int64, count, elements=st.integers(MISSING, CLASSES - 1)))
    labels[0] = max(labels[0], 0)
    return labels, draw(arrays.arrays(np.int64, count, elements=st.integers(0, CLASSES - 1)))


def predictions(labels, logits, task=GENDER, source=None, person=None):
    ids = [f"r{i}" for i in range(len(labels))]
    return Predictions((task,), ids, {task.name: labels}, {task.name: logits}, source=source, person=person)


@settings(max_examples=60, deadline=None)
@given(answers())
def test_every_figure_of_a_matrix_equals_scikit_learns(case):
    labels, predicted = case
    matrix = metrics.confusion_matrix(labels, predicted, CLASSES)
    y, p = labels[labels != MISSING], predicted[labels != MISSING]
    present = np.unique(y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of classes that only the predictions hold
        balanced = sklearn.metrics.balanced_accuracy_score(y, p)
    assert metrics.accuracy(matrix) == pytest.approx(sklearn.metrics.accuracy_score(y, p))
    assert metrics.balanced_accuracy(matrix) == pytest.approx(balanced)
    f1 = sklearn.metrics.f1_score(y, p, labels=present, average="macro", zero_division=0)
    assert metrics.macro_f1(matrix) == pytest.approx(f1)
    assert metrics.mean_absolute_error(matrix) == pytest.approx(sklearn.metrics.mean_absolute_error(y, p))
    assert metrics.off_by_one_accuracy(matrix) == pytest.approx(np.mean(np.abs(y - p) <= 1))
    every = range(CLASSES)
    recall = sklearn.metrics.recall_score(y, p, labels=every, average=None, zero_division=np.nan)
    precision = sklearn.metrics.precision_score(y, p, labels=every, average=None, zero_division=np.nan)
    np.testing.assert_allclose(metrics.recall(matrix), recall)
    np.testing.assert_allclose(metrics.precision(matrix), precision)


def test_a_class_that_is_only_predicted_counts_in_no_mean():
    matrix = metrics.confusion_matrix(np.array([0, 0, 1, 1]), np.array([0, 2, 1, 2]), 3)
    assert metrics.balanced_accuracy(matrix) == 0.5
    assert np.isnan(metrics.recall(matrix)[2])
    assert metrics.precision(matrix)[2] == 0


def test_missing_labels_are_left_out():
    matrix = metrics.confusion_matrix(np.array([MISSING, 0, 1, MISSING]), np.array([0, 0, 0, 1]), 2)
    assert matrix.tolist() == [[1, 0], [1, 0]]
    assert metrics.accuracy(matrix) == 0.5
    assert metrics.majority_share(matrix) == 0.5


@pytest.mark.parametrize(("labels", "predicted"), [([0, 3], [0, 0]), ([0, -2], [0, 0]), ([0, 1], [0, 3])])
def test_a_label_or_prediction_outside_the_classes_is_refused(labels, predicted):
    with pytest.raises(ValueError, match="outside 0 to 2"):
        metrics.confusion_matrix(np.array(labels), np.array(predicted), 3)


def test_figures_of_nothing_are_not_numbers():
    empty = np.zeros((3, 3), int)
    for statistic in (metrics.accuracy, metrics.balanced_accuracy, metrics.macro_f1, metrics.off_by_one_accuracy, metrics.majority_share):
        assert np.isnan(statistic(empty))
    assert all(np.isnan(metrics.bootstrap_interval(empty, metrics.accuracy)))


def test_many_matrices_are_measured_at_once_as_each_alone():
    matrices = np.random.default_rng(0).integers(0, 4, (6, 4, 4))
    matrices[0, 1] = 0
    for statistic in (metrics.accuracy, metrics.balanced_accuracy, metrics.macro_f1, metrics.mean_absolute_error, metrics.recall):
        np.testing.assert_allclose(statistic(matrices), [statistic(matrix) for matrix in matrices])


def test_calibration_error_of_a_case_worked_out_by_hand():
    # bin (0.5, 0.6]: confidence 0.6, 1 of 2 right; bin (0.8, 0.9]: confidence 0.9, 2 of 2 right
    probabilities = np.array([[0.6, 0.4], [0.4, 0.6], [0.9, 0.1], [0.1, 0.9], [0.5, 0.5]])
    bins = metrics.reliability(probabilities, np.array([0, 0, 0, 1, MISSING]), bins=10)
    assert bins.count.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 2, 0]
    assert bins.accuracy[[5, 8]].tolist() == [0.5, 1.0]
    assert bins.calibration_error == pytest.approx(0.5 * abs(0.6 - 0.5) + 0.5 * abs(0.9 - 1.0))


def test_a_model_that_is_as_sure_as_it_is_right_has_no_calibration_error():
    probabilities = np.tile([0.75, 0.25], (4, 1))
    assert metrics.reliability(probabilities, np.array([0, 0, 0, 1])).calibration_error == pytest.approx(0)


def test_probabilities_survive_huge_logits():
    np.testing.assert_allclose(metrics.probabilities(np.array([[1e4, 0.0], [-1e4, -1e4]], np.float32)), [[1, 0], [0.5, 0.5]])
    assert metrics.probabilities(np.zeros((0, 3))).shape == (0, 3)


def test_the_bootstrap_interval_is_that_of_a_binomial_share():
    matrix = np.array([[160, 40], [40, 160]])
    low, high = metrics.bootstrap_interval(matrix, metrics.accuracy, resamples=4000)
    spread = 1.96 * np.sqrt(0.8 * 0.2 / 400)
    assert low == pytest.approx(0.8 - spread, abs=0.006)
    assert high == pytest.approx(0.8 + spread, abs=0.006)
    assert (low, high) == metrics.bootstrap_interval(matrix, metrics.accuracy, resamples=4000)


def test_resampling_whole_persons_widens_the_interval():
    right, wrong = np.diag([10, 0]), np.array([[0, 10], [0, 0]])
    persons = np.stack([right] * 15 + [wrong] * 15)
    low, high = metrics.bootstrap_interval(persons, metrics.accuracy)
    narrow_low, narrow_high = metrics.bootstrap_interval(persons.sum(axis=0), metrics.accuracy)
    assert high - low > 2 * (narrow_high - narrow_low)


def test_records_are_resampled_by_person_where_several_are_of_one():
    labels, logits = [0, 0, 1, 1, MISSING], np.eye(2)[[0, 1, 1, 1, 0]]
    known = predictions(labels, logits, person=["ann", "ann", "", "", "bob"])
    matrices = metrics.person_matrices(known, GENDER)
    assert matrices.tolist() == [[[1, 1], [0, 0]], [[0, 0], [0, 1]], [[0, 0], [0, 1]]]
    np.testing.assert_array_equal(matrices.sum(axis=0), metrics.task_matrix(known, GENDER))
    alone = predictions(labels, logits, person=["ann", "bob", "", "", "bob"])
    np.testing.assert_array_equal(metrics.person_matrices(alone, GENDER), metrics.task_matrix(alone, GENDER))


def test_average_and_overall_are_the_theses():
    # FT4, multi-task: ages without VGGFace2, then the three tasks' averages (Tables 4.9 and 4.12)
    ages = {"utkface": 62.54, "fairface": 63.45, "vggface2": 61.68}
    age = metrics.average_over_sources("age", ages)
    assert age == pytest.approx(62.995)
    assert metrics.overall({"emotion": 88.43, "age": 63.00, "gender": 97.41}) == pytest.approx(82.9467, abs=1e-4)
    assert np.isnan(metrics.average_over_sources("age", {"vggface2": 60.0}))


def test_a_data_set_that_the_thesis_tests_other_tasks_on_is_no_part_of_the_average():
    genders = {"raf_db": 1.0, "UTKFace": 0.7, "fairface": 0.75, "vggface2": 0.8}
    assert metrics.average_over_sources("gender", genders) == pytest.approx(0.75)
    assert metrics.average_over_sources("gender", {"raf_db": 0.5, "mine": 0.7}) == pytest.approx(0.6)  # none of its sets: all count


def test_a_summary_averages_over_sources_and_not_over_records():
    labels = np.array([0] * 9 + [1])
    logits = np.eye(2)[np.array([0] * 10)]
    summary = summarize(predictions(labels, logits, source=["many"] * 9 + ["few"]))
    assert summary["accuracy/gender"] == pytest.approx(0.9)
    assert summary["average_accuracy/gender"] == pytest.approx(0.5)
    assert summary["overall_accuracy"] == pytest.approx(0.5)
    assert summary["count/gender"] == 10


def test_a_summary_has_ordinal_figures_for_ordered_classes_only_and_no_keys_for_an_unlabelled_task():
    tasks = (AGE, GENDER, EMOTION)
    labels = {"age": [3, 4, 8], "gender": [0, 1, 1], "emotion": [MISSING] * 3}
    logits = {"age": np.eye(9)[[3, 5, 2]], "gender": np.eye(2)[[0, 1, 0]], "emotion": np.eye(7)[[0, 1, 2]]}
    summary = summarize(Predictions(tasks, ["a", "b", "c"], labels, logits))
    assert summary["mean_absolute_error/age"] == pytest.approx((0 + 1 + 6) / 3)
    assert summary["off_by_one/age"] == pytest.approx(2 / 3)
    assert "off_by_one/gender" not in summary
    assert not [key for key in summary if key.endswith("/emotion")]
    assert all(np.isfinite(value) for value in summary.values())
    assert set(summarize(Predictions(tasks, ["a", "b", "c"], labels, logits), [GENDER])) & {"accuracy/age"} == set()


def test_a_summary_of_no_records_is_empty():
    assert summarize(predictions([], np.zeros((0, 2)))) == {}


def test_logits_that_are_not_finite_are_an_error_that_names_a_record():
    with pytest.raises(UserError, match=r"task gender: the logits of 1 of 2 records are not finite \(first: r1\)"):
        summarize(predictions([0, 1], np.array([[0.0, 1.0], [np.nan, 0.0]])))


def test_a_task_of_ones_own_is_measured_like_any_other():
    glasses = Task("glasses", ("none", "plain", "sun"))
    assert summarize(predictions([0, 1, 2], np.eye(3), glasses))["balanced_accuracy/glasses"] == 1.0
