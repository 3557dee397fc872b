"""The stored answers: nothing is lost, and a file that is something else is named as such."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxface.data.tasks import AGE, EMOTION, Task
from jaxface.errors import UserError
from jaxface.evaluation.predictions import Predictions
from jaxface.evaluation.summary import summarize
from jaxface.runs import predictions_file
from jaxface.runs.predictions_file import METADATA_KEY, read_predictions, write_predictions


def make(count=20, features=None, **options):
    random = np.random.default_rng(count)
    tasks = (AGE, EMOTION)
    labels = {task.name: random.integers(-1, task.num_classes, count) for task in tasks}
    logits = {task.name: random.normal(size=(count, task.num_classes)) for task in tasks}
    ids = [f"bild/ä{index}.jpg" for index in range(count)]
    return Predictions(tasks, ids, labels, logits, features=None if features is None else random.normal(size=(count, features)), **options)


@settings(max_examples=15, deadline=None)
@given(count=st.integers(0, 30), features=st.sampled_from([None, 1, 16]))
def test_what_is_read_is_what_was_written(tmp_path_factory, count, features):
    path = tmp_path_factory.mktemp("run") / "predictions.parquet"
    written = make(count, features, source=["set"] * count, person=[f"p{index % 3}" for index in range(count)], about={"split": "test"})
    write_predictions(path, written)
    read = read_predictions(path)
    assert read.tasks == written.tasks
    assert read.about == {"split": "test"}
    for name in ("id", "source", "person"):
        assert getattr(read, name).tolist() == getattr(written, name).tolist()
    for task in ("age", "emotion"):
        np.testing.assert_array_equal(read.labels[task], written.labels[task])
        np.testing.assert_array_equal(read.logits[task], written.logits[task])
    if features is None:
        assert read.features is None
    elif count:
        np.testing.assert_array_equal(read.features, written.features.astype(np.float32))
    assert summarize(read) == summarize(written)


def test_the_columns_are_those_that_others_rely_on(tmp_path):
    write_predictions(tmp_path / "p.parquet", make(3, features=4))
    schema = pq.read_schema(tmp_path / "p.parquet")
    assert schema.names == ["id", "source", "person", "age", "age_logits", "emotion", "emotion_logits", "features"]
    assert schema.field("age").type == pa.int64()
    assert schema.field("age_logits").type == pa.list_(pa.float32())
    assert json.loads(schema.metadata[METADATA_KEY])["tasks"][0] == {"name": "age", "classes": list(AGE.classes), "ordinal": True}


def test_classes_come_from_the_file_and_not_from_the_known_tasks(tmp_path):
    glasses = Task("glasses", ("none", "some"))
    write_predictions(tmp_path / "p.parquet", Predictions((glasses,), ["a"], {"glasses": [1]}, {"glasses": [[0.0, 1.0]]}))
    assert read_predictions(tmp_path / "p.parquet").tasks == (glasses,)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "predictions.parquet"
    write_predictions(path, make(5))
    old = path.read_bytes()

    def half_then_full_disk(table, where, **options):
        where.write_bytes(b"PAR1 half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(predictions_file.pq, "write_table", half_then_full_disk)
    with pytest.raises(UserError, match=r"predictions\.parquet: cannot be written: no space"):
        write_predictions(path, make(6))
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.unlink(), "no such file"),
        (lambda p: p.write_bytes(p.read_bytes()[:200]), "not a readable Parquet file"),
        (lambda p: p.write_bytes(b""), "not a readable Parquet file"),
        (lambda p: pq.write_table(pa.table({"id": ["a"]}), p), "its metadata name no tasks"),
        (lambda p: pq.write_table(pq.read_table(p).drop_columns("age_logits"), p), "age_logits"),
        (lambda p: pq.write_table(_with(p, "age", [99] * 20), p), "labels of age: outside -1 to 8"),
        (lambda p: pq.write_table(_with(p, "age_logits", [[0.0, 1.0]] * 20), p), "lists of 2 values, expected 9"),
        (lambda p: pq.write_table(_with(p, "age_logits", [[0.0] * 9] * 19 + [[0.0] * 8]), p), "lists of 8, 9 values, expected 9"),
    ],
)
def test_a_file_that_is_not_a_whole_set_of_predictions_is_named(tmp_path, change, message):
    path = tmp_path / "predictions.parquet"
    write_predictions(path, make(20))
    change(path)
    with pytest.raises(UserError, match=message) as error:
        read_predictions(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def _with(path, name, values):
    table = pq.read_table(path)
    return table.set_column(table.column_names.index(name), name, pa.array(values))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": {"age": [0, 1]}}, "labels of age"),
        ({"logits": {"age": np.zeros((1, 8))}}, "logits of age"),
        ({"labels": {"age": [9]}}, "outside -1 to 8"),
        ({"source": ["a", "b"]}, "source"),
        ({"features": np.zeros(1)}, "features"),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(arrays, message):
    fitting = {"tasks": (AGE,), "id": ["a"], "labels": {"age": [0]}, "logits": {"age": np.zeros((1, 9))}}
    with pytest.raises(ValueError, match=message):
        Predictions(**fitting | arrays)
