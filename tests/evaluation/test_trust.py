"""Stated shares are met: sets, withheld answers and thresholds, over random splits into records to fit on and records to look at."""

import numpy as np
import pytest

from jaxface.data.tasks import AGE, AGE_YEARS, Task, known
from jaxface.errors import UserError
from jaxface.evaluation.predictions import Predictions
from jaxface.evaluation.trust import Abstention, Caution, Sets, Threshold, chances, confidence, misfit, numbers_of, quantile, truly_above
from jaxface.evaluation.trust_report import trust

CLASSES = Task("c", tuple("abcde"))
LABELS = Task("m", ("a", "b", "c"), kind="multi-label")
NUMBER = Task("age", kind="regression", unit="years", center=30.0, scale=20.0, within=5.0)
SPLITS = 200


@pytest.fixture(scope="module")
def answers():
    random, count = np.random.default_rng(0), 2000
    years = np.clip(random.gamma(3, 11, count), 0, 99).astype(int)
    seen, spread = years + random.normal(0, 6, count), random.uniform(2, 9, count)
    classes, several = random.integers(0, 5, count), (random.random((count, 3)) < 0.4).astype(np.int8)
    logits = random.normal(0, 1, (count, 5))
    logits[np.arange(count), classes] += 1.7
    return Predictions(
        (AGE_YEARS, CLASSES, LABELS, NUMBER),
        [str(row) for row in range(count)],
        {"age_years": years, "c": classes, "m": several, "age": years.astype(float)},
        {
            "age_years": -0.5 * ((np.arange(101) - seen[:, None]) / spread[:, None]) ** 2,
            "c": logits,
            "m": 2 * several - 1 + random.normal(0, 1.2, (count, 3)),
            "age": ((seen - 30) / 20)[:, None],
        },
        groups={"site": np.where(spread > 5, "north", "south").astype(object)},
    )


def halves(answers, task):
    """Random splits: half to fit on, half to look at."""
    own = answers.rows(np.arange(len(answers)), [task])
    for seed in range(SPLITS):
        order = np.random.default_rng(seed).permutation(len(own))
        yield own.rows(order[: len(order) // 2]), own.rows(order[len(order) // 2 :])


def assert_met(found, stated):
    """The mean within two standard errors."""
    assert len(found) == SPLITS
    assert abs(np.mean(found) - stated) < 2 * np.std(found, ddof=1) / np.sqrt(SPLITS)


@pytest.mark.parametrize("task", [AGE_YEARS, CLASSES, LABELS, NUMBER], ids=lambda task: task.kind)
def test_sets_hold_the_label_as_often_as_stated(answers, task):
    assert_met([np.mean(misfit(test, task) <= Sets.fit(fitted, task, 0.9).limit) for fitted, test in halves(answers, task)], 0.9)


def test_groups_with_limits_of_their_own_are_covered_each(answers):
    found = {"north": [], "south": []}
    for fitted, test in halves(answers, AGE_YEARS):
        sets, groups = Sets.fit(fitted, AGE_YEARS, 0.8, fitted.groups["site"]), test.groups["site"]
        inside = misfit(test, AGE_YEARS) <= sets.limits(groups)
        for group, own in found.items():
            own.append(inside[groups == group].mean())
    for own in found.values():
        assert_met(own, 0.8)


def test_of_the_answers_that_are_given_as_many_are_wrong_as_stated(answers):
    found = []
    for fitted, test in halves(answers, CLASSES):
        given = confidence(test, CLASSES) >= Abstention.fit(fitted, CLASSES, 0.1).least
        found.append((~test.right(CLASSES))[given].mean())
    assert_met(found, 0.1)


@pytest.mark.parametrize("task", [AGE_YEARS, NUMBER], ids=lambda task: task.kind)
def test_a_threshold_errs_on_both_sides_and_by_its_challenge_age_as_often_as_stated(answers, task):
    above, below, challenged = [], [], []
    for fitted, test in halves(answers, task):
        limit = Threshold.fit(fitted, task, 18, 0.02)
        truth, said = truly_above(test, task, 18), limit.decisions(chances(test, task, 18, limit.residuals))
        above.append(np.mean(said[~truth] == "above"))
        below.append(np.mean(said[truth] == "below"))
        challenged.append(np.mean(numbers_of(test, task)[~truth] > limit.challenge))
    for found in (above, below, challenged):
        assert_met(found, 0.02)


def test_with_too_few_records_nobody_is_said_to_be_beyond():
    assert quantile(np.arange(50.0), 0.01) == np.inf
    assert quantile(np.arange(1.0, 100.0), 0.01) == 99
    labels, logits = np.array([3.0, 40.0, 50.0]), np.float32([[-2], [0], [1]])
    few = Predictions((NUMBER,), ["a", "b", "c"], {"age": labels}, {"age": logits})
    limit = Threshold.fit(few, NUMBER, 18, 0.01)
    assert limit.decisions(np.array([0.0, 0.5, 1.0])).tolist() == ["unsure"] * 3
    assert (limit.count_below, limit.count_above) == (1, 2)


def test_a_threshold_inside_a_group_is_refused_and_at_its_edge_is_not(answers):
    groups = Predictions((AGE,), ["a", "b"], {"age": np.array([1, 6])}, {"age": np.eye(9)[[2, 6]]})
    with pytest.raises(UserError, match=r"18 lies inside the class 10-19 of age .*a run on single years"):
        Threshold.fit(groups, AGE, 18, 0.01)
    assert truly_above(groups, AGE, 20).tolist() == [False, True]
    with pytest.raises(UserError, match="none of the tasks c is an age"):
        trust(answers.rows(np.arange(9), [CLASSES]), answers.rows(np.arange(9), [CLASSES]), Caution(threshold_age=18))


def test_the_report_counts_what_is_counted_by_hand(answers):
    fitted, test = answers.rows(np.arange(0, 2000, 2)), answers.rows(np.arange(1, 2000, 2))
    found = trust(test, fitted, Caution(coverage=0.8, most_errors=0.2, threshold_age=18, at_most=0.05))
    assert set(found["tasks"]) == {"age_years", "c", "m", "age"}
    shares = test.shares(CLASSES)
    limit = Sets.fit(fitted, CLASSES, 0.8).limit
    covered = np.mean(1 - shares[np.arange(1000), test.labels["c"]] <= limit)
    assert found["tasks"]["c"]["sets"]["covered"]["rate"] == pytest.approx(covered)
    assert found["tasks"]["c"]["sets"]["mean_size"] == pytest.approx(np.mean((1 - shares <= limit).sum(1)))
    rules = found["threshold"]["rules"]
    adult, tail = test.labels["age_years"] >= 18, test.shares(AGE_YEARS)[:, 18:].sum(1)
    assert rules["as_predicted"]["false_above"]["rate"] == pytest.approx(np.mean(tail[~adult] >= 0.5))
    assert rules["fitted"]["false_above"]["records"] == (~adult).sum()
    low, high = rules["fitted"]["false_above"]["interval"]
    assert low < rules["fitted"]["false_above"]["rate"] < high
    assert {"site: north", "site: south"} <= set(found["threshold"]["groups"])
    assert known(test.labels["c"]).all()
