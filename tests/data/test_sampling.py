"""Sampling, beside Table 3.2 of the thesis: what its training set was, and what it printed of the drawn records."""

import numpy as np
import pytest

from jaxface.data.sampling import Shuffled, Weighted, make_order, replicas, sample_weights, shares, task_shares
from jaxface.errors import UserError

AGES = (2935, 15699, 16032, 29784, 24462, 17976, 14413, 10618, 4828)
EMOTIONS = (912, 218, 544, 3701, 1301, 556, 1983)
GENDERS = (82147, 86215)
PRINTED = {
    "age": (6.63, 11.31, 11.36, 16.37, 14.56, 12.14, 10.89, 9.44, 7.31),
    "gender": (49.26, 50.74),
    "emotion": (12.14, 8.44, 9.99, 26.85, 14.20, 10.25, 18.13),
}
CLASSES = {task: len(values) for task, values in PRINTED.items()}


@pytest.fixture(scope="module")
def training_set():
    """The thesis's: every record has a gender, no record both age and emotion; who is of which gender is not printed, so chance says."""
    size = sum(GENDERS)
    age, emotion = np.full(size, -1), np.full(size, -1)
    age[: sum(AGES)] = np.repeat(np.arange(9), AGES)
    emotion[-sum(EMOTIONS) :] = np.repeat(np.arange(7), EMOTIONS)
    gender = np.random.default_rng(0).permutation(np.repeat([0, 1], GENDERS))
    return {"age": age, "gender": gender, "emotion": emotion}


def errors(labels, weights):
    """The largest distance of a task's drawn shares from the printed ones, in percent points."""
    drawn = shares(labels, CLASSES, weights)
    return {task: np.abs(100 * drawn[task] - printed).max() for task, printed in PRINTED.items()}


def test_balanced_sampling_gives_the_weighted_percentages_of_table_3_2(training_set):
    weights = sample_weights(training_set, replicas(training_set))
    far = errors(training_set, weights)
    assert far["age"] < 0.1
    assert far["gender"] < 0.1
    # the printed figures are a simulation of ten epochs, whose noise for "happy", printed 26.85, expected 27.23, has a deviation of 0.15
    assert far["emotion"] < 0.4
    emotion = 100 * shares(training_set, CLASSES, weights)["emotion"]
    assert (np.abs(emotion - PRINTED["emotion"]) < 0.3).sum() == 6


def test_emotions_are_a_third_of_what_is_drawn_and_every_other_share_stays(training_set):
    plain, replicated = sample_weights(training_set), sample_weights(training_set, replicas(training_set))
    assert task_shares(training_set, plain)["emotion"] == pytest.approx(0.0547, abs=5e-4)
    assert task_shares(training_set, replicated)["emotion"] == pytest.approx(1 / 3, abs=2e-3)
    for task in ("age", "emotion"):
        before, after = (shares(training_set, CLASSES, weights)[task] for weights in (plain, replicated))
        np.testing.assert_allclose(before, after, atol=3e-3)


@pytest.mark.parametrize("reading", ["1 / n", "N_task / n", "N / (K n)"])
def test_other_readings_of_inverse_frequency_do_not_give_the_table(training_set, reading):
    size = len(training_set["gender"])
    total, carried = np.zeros(size), np.zeros(size)
    for values in training_set.values():
        known = values >= 0
        counts = np.bincount(values[known])
        factor = {"1 / n": 1, "N_task / n": known.sum(), "N / (K n)": size / len(counts)}[reading]
        total[known] += factor / counts[values[known]]
        carried[known] += 1
    assert errors(training_set, total / carried)["emotion"] > 6  # 12.2, 6.8 and 11.2 points


def test_a_record_weighs_the_mean_of_its_labels_weights():
    labels = {"age": np.array([0, 0, 0, 1]), "gender": np.array([0, 1, -1, -1]), "emotion": np.full(4, -1)}
    np.testing.assert_allclose(sample_weights(labels), [(4 / 6 + 1) / 2, (4 / 6 + 1) / 2, 4 / 6, 2])
    assert sample_weights({"age": np.array([-1, 3])}).tolist() == [0, 1]


def test_replicas_count_as_records_that_stand_there_several_times():
    labels = {"gender": np.array([0] * 6 + [1] * 2), "emotion": np.array([-1] * 7 + [2])}
    copies = replicas(labels)
    np.testing.assert_allclose(copies, [1] * 7 + [3.5])
    doubled = {task: np.repeat(values, [2] * 7 + [7]) for task, values in labels.items()}
    expected = sample_weights(doubled)
    np.testing.assert_allclose(sample_weights(labels, copies)[[0, 6]], expected[[0, 12]])
    np.testing.assert_allclose(sample_weights(labels, copies)[7], 3.5 * expected[-1])
    assert replicas({"gender": labels["gender"]}).tolist() == [1] * 8  # without the task, nothing is replicated


def test_a_shuffled_epoch_holds_every_record_once():
    order = Shuffled(13, seed=4)
    epochs = [[order[e * 13 + k] for k in range(13)] for e in range(3)]
    assert all(sorted(epoch) == list(range(13)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert [order[k] for k in (30, 2, 17)] == [Shuffled(13, seed=4)[k] for k in (30, 2, 17)]


def test_weighted_draws_follow_the_weights():
    order = Weighted(np.array([1.0, 0.0, 3.0]), seed=1)
    drawn = np.bincount([order[k] for k in range(4000)], minlength=3) / 4000
    np.testing.assert_allclose(drawn, [0.25, 0, 0.75], atol=0.03)


def test_an_unknown_sampling_is_one_clear_line():
    with pytest.raises(UserError, match="no sampling 'fair'; known: shuffle, balanced"):
        make_order("fair", {"age": np.array([0])}, 1, 0)
