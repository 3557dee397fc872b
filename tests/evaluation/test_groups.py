"""Errors by group, against cases worked out by hand."""

import numpy as np
import pytest
from scipy.stats import norm

from jaxface.data.tasks import AGE, GENDER, MISSING
from jaxface.errors import UserError
from jaxface.evaluation.groups import disparities, group_errors, read_groups, with_groups
from jaxface.evaluation.predictions import Predictions
from jaxface.runs.predictions_file import read_predictions, write_predictions


def predictions(gender, age, predicted_gender, **more):
    logits = np.eye(2)[predicted_gender]
    ids = [f"val/{i}.jpg" for i in range(len(gender))]
    labels = {"gender": np.array(gender), "age": np.array(age)}
    return Predictions((GENDER, AGE), ids, labels, {"gender": logits, "age": np.eye(9)[np.maximum(age, 0)]}, **more)


def row(rows, task, attribute, group):
    return next(r for r in rows if (r.task, r.attribute, r.group) == (task, attribute, group))


def test_errors_are_counted_in_every_group_and_pair_of_groups():
    rows = group_errors(predictions([0, 0, 1, 1, MISSING], [0, 8, 0, 8, 0], [0, 1, 1, 0, 0]))
    assert (row(rows, "gender", "gender", "male").errors, row(rows, "gender", "gender", "male").count) == (1, 2)
    assert row(rows, "gender", "age", "0-2").errors == 0
    assert row(rows, "gender", "age", "70+").rate == 1.0
    assert row(rows, "gender", "gender x age", "female x 70+").errors == 1
    assert row(rows, "age", "age", "0-2").count == 3  # the record without a gender is of an age all the same
    assert not any(r.group == "" for r in rows)
    pairs = {r.group for r in rows if r.attribute == "gender x age"}
    assert pairs == {"male x 0-2", "male x 70+", "female x 0-2", "female x 70+"}  # both must be known


def test_the_interval_is_wilsons():
    one = row(group_errors(predictions([0] * 10, [0] * 10, [1, 1] + [0] * 8)), "gender", "gender", "male")
    z, n, p = norm.ppf(0.975), 10, 0.2
    centre, half = (p + z * z / (2 * n)) / (1 + z * z / n), z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (one.low, one.high) == pytest.approx((centre - half, centre + half))


def test_a_disparity_names_the_best_and_the_worst_group_that_is_large_enough():
    gender = [0] * 40 + [1] * 40 + [1] * 5
    age = [0] * 40 + [8] * 40 + [4] * 5
    wrong = [0] * 40 + [0] * 30 + [1] * 10 + [0] * 5  # all right for men, a quarter right for old women, none for five others
    found = {(d.task, d.attribute): d for d in disparities(group_errors(predictions(gender, age, wrong)))}
    one = found["gender", "age"]
    assert (one.best.group, one.worst.group, one.gap, one.certain) == ("0-2", "70+", 0.75, True)
    assert str(one) == "gender by age: wrong for 75.0 % of 40 70+, 0.0 % of 40 0-2"


def test_groups_that_differ_by_chance_are_marked_so():
    found = disparities(group_errors(predictions([0] * 30 + [1] * 30, [0] * 60, [0] * 29 + [1] + [1] * 28 + [0] * 2)))
    one = next(d for d in found if d.attribute == "gender" and d.task == "gender")
    assert not one.certain
    assert "overlap" in str(one)


def test_a_table_of_groups_joins_by_the_records_ids_and_is_kept(tmp_path):
    (tmp_path / "labels.csv").write_text("file,age,race\nval/0.jpg,0-2,White\nval/1.jpg,0-2,Black\nval/9.jpg,0-2,Indian\n")
    name, groups = read_groups(f"{tmp_path}/labels.csv:race")
    joined = with_groups(predictions([0, 1, 1], [0, 0, 0], [0, 0, 1]), name, groups)
    write_predictions(tmp_path / "p.parquet", joined)
    again = read_predictions(tmp_path / "p.parquet")
    assert again.groups["race"].tolist() == ["White", "Black", ""]
    rows = group_errors(again)
    assert row(rows, "gender", "race", "Black").errors == 1
    assert row(rows, "gender", "gender x race", "female x Black").count == 1


@pytest.mark.parametrize("word", ["labels.csv", "labels.csv:colour", "labels.csv:race:name", "nothing.csv:race"])
def test_a_table_or_column_that_is_not_there_is_one_line(tmp_path, word):
    (tmp_path / "labels.csv").write_text("file,race\na,b\n")
    with pytest.raises(UserError, match="--groups") as error:
        read_groups(f"{tmp_path}/{word}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("file,race\na\n", "labels.csv:2: 1 cells, but 2 columns"), ("file,race\na,x\na,y\n", "labels.csv:3: a has two values of Race")],
)
def test_a_table_of_groups_is_read_as_strictly_as_any_other(tmp_path, text, message):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_groups(f"{tmp_path}/labels.csv:Race")


def test_a_table_of_other_records_is_refused():
    with pytest.raises(UserError, match="no record has an id of that table"):
        with_groups(predictions([0], [0], [0]), "race", {"other": "White"})
