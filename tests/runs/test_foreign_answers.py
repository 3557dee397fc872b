"""Answers of any model, from tables and JSON lines, get the figures that the same answers get as a run's own."""

import csv
import json

import numpy as np
import pytest
from made_answers import answers
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from jaxface.data.tasks import AGE, AGE_YEARS, EMOTION, GENDER
from jaxface.errors import UserError
from jaxface.evaluation.summary import summarize
from jaxface.runs.foreign_answers import Told, read_foreign


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows_of(own, tasks, shares=True):
    rows = []
    for index, name in enumerate(own.id):
        row = {"path": name}
        for task in tasks:
            label = own.labels[task.name][index]
            row |= {
                task.name: task.classes[own.predicted(task.name)[index]],
                f"{task.name}_label": "" if label < 0 else task.classes[label],
            }
            if shares:
                row |= {f"{task.name}_{n}": float(p) for n, p in zip(task.classes, own.shares(task)[index], strict=True)}
        rows.append(row)
    return rows


def test_a_table_of_a_models_answers_has_the_figures_of_the_model(tmp_path):
    own = answers(2.0, count=80)
    found = read_foreign(write(tmp_path / "theirs.csv", rows_of(own, (AGE, GENDER, EMOTION))), Told())
    mine, theirs = summarize(own), summarize(found)
    assert {key: theirs[key] for key in mine if not key.startswith("average")} == pytest.approx(
        {key: value for key, value in mine.items() if not key.startswith("average")}, rel=1e-5
    )


def test_labels_come_from_prepared_records_by_their_names_and_other_rows_are_left_out(tmp_path, capsys):
    own = answers(2.0, count=40)
    rows = [{"file": f"/photos/{row['path']}.jpg", "sex": row["gender"]} for row in rows_of(own, (GENDER,))]
    rows.append({"file": "/photos/elsewhere.jpg", "sex": "f"})
    found = read_foreign(write(tmp_path / "theirs.jsonl", rows), Told({"gender": "sex"}), own)
    assert "40 of 41 rows are of the 40 records" in capsys.readouterr().err
    labels, there = own.labels["gender"], own.labels["gender"] >= 0
    assert summarize(found)["accuracy/gender"] == pytest.approx(accuracy_score(labels[there], own.predicted("gender")[there]))
    assert summarize(found)["balanced_accuracy/gender"] == pytest.approx(
        balanced_accuracy_score(labels[there], own.predicted("gender")[there])
    )
    assert "calibration_error/gender" not in summarize(found)  # classes alone say nothing of how sure they are


def test_years_of_age_are_years_and_groups_and_confidences_may_be_in_percent(tmp_path):
    rows = [
        {"id": n, "age": a, "age_label": b, "age_confidence": c} for n, (a, b, c) in enumerate([(42, 44, 90), (8, 11, 80), (70, 70, 60)])
    ]
    found = read_foreign(write(tmp_path / "years.csv", rows), Told())
    assert set(found.tasks) == {AGE, AGE_YEARS}
    assert summarize(found)["mean_absolute_error/age_years"] == pytest.approx((2 + 3 + 0) / 3)
    assert summarize(found)["accuracy/age"] == pytest.approx(2 / 3)
    np.testing.assert_allclose(found.shares(AGE).max(1), [0.9, 0.8, 0.6], rtol=1e-5)


def test_what_the_file_calls_a_task_is_found_with_its_label(tmp_path):
    cells = [("Rosé", "Rosé", 3.5, 3, "a; b", "a"), ("Élan", "Rosé", 9, 8.25, "", "b"), ("Élan", "", 1.5, 2, "b", "b")]
    names = [f"{task}_{what}" for task in ("Art", "cm", "tags") for what in ("predicted", "label")]
    rows = [{"id": number, **dict(zip(names, row, strict=True))} for number, row in enumerate(cells)]
    found = read_foreign(write(tmp_path / "own.csv", rows), Told())
    assert {task.name: task.kind for task in found.tasks} == {"Art": "classification", "cm": "regression", "tags": "multi-label"}
    values = summarize(found)
    assert values["accuracy/Art"] == 0.5
    assert values["mean_absolute_error/cm"] == pytest.approx((0.5 + 0.75 + 0.5) / 3)
    assert values["accuracy/tags"] == pytest.approx(1 / 3)


def test_a_column_that_is_called_otherwise_stands_in_the_place_of_one_of_its_name_and_has_to_be_there(tmp_path):
    own = [{"id": str(i), "pred": "male", "gender": "female", "gender_label": "male"} for i in range(3)]
    path = write(tmp_path / "a.csv", own)
    read = read_foreign(path, Told({"gender": "pred"}))
    assert summarize(read)["accuracy/gender"] == 1
    with pytest.raises(UserError, match="--columns gender=guess: no column guess; found gender, gender_label, id, pred"):
        read_foreign(path, Told({"gender": "guess"}))
    assert summarize(read_foreign(path, Told({"gender": "guess"}, several=True)))["accuracy/gender"] == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"name": "a", "age": 3}], "no column id or path"),
        ([{"id": "a", "colour": "red"}], "no column with an answer"),
        ([{"id": "a", "age": 3}, {"id": "a", "age": 4}], "two rows are of a"),
        ([{"id": "a", "age": 3}, {"id": "b", "age": ""}], "1 rows have no answer to age .first: b"),
        ([{"id": "a", "gender": "both"}], "gender 'both' is out of range"),
        ([{"id": "a", "gender": "f", "gender_confidence": 120}], "'120' is no probability"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, rows, message):
    with pytest.raises(UserError, match=message) as error:
        read_foreign(write(tmp_path / "a.csv", rows), Told())
    assert "\n" not in str(error.value)
