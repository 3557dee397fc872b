"""Run folders: whole, half-written and broken."""

import json

import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.runs.folder import read_metrics, read_run


def write(path, *lines, end="\n"):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + end)
    return path


def row(step, split="train", **values):
    return {"step": step, "split": split, **values}


def test_a_last_line_cut_by_a_kill_is_ignored(tmp_path):
    path = write(tmp_path / "metrics.jsonl", row(1, loss=2.0), row(2, loss=1.0), '{"step": 3, "spl', end="")
    assert [entry["step"] for entry in read_metrics(path)] == [1, 2]


def test_a_last_line_cut_within_a_letter_is_ignored(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(json.dumps(row(1)).encode() + b'\n{"step": 2, "split": "\xc3')
    assert len(read_metrics(path)) == 1


def test_a_whole_last_line_without_line_feed_counts(tmp_path):
    assert len(read_metrics(write(tmp_path / "metrics.jsonl", row(1), row(2), end=""))) == 2


@pytest.mark.parametrize(
    "broken",
    [
        '{"step": 2, "lo',
        "12",
        "[1, 2]",
        '{"step": 2}',
        '{"step": "2", "split": "train"}',
        '{"step": NaN, "split": "a"}',
        '{"step": 2, "split": [1]}',
        "\x00\x00",
    ],
)
def test_a_broken_line_in_the_middle_is_named_by_its_number(tmp_path, broken):
    path = write(tmp_path / "metrics.jsonl", row(1), broken, row(3))
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a JSON object"):
        read_metrics(path)


def test_of_a_step_logged_again_after_resuming_the_later_row_counts(tmp_path):
    rows = [row(1, loss=3.0), row(2, loss=2.0), row(2, "validation", loss=9.0), row(3, loss=1.0), row(2, loss=2.5), row(3, loss=1.5)]
    read = read_metrics(write(tmp_path / "metrics.jsonl", *rows))
    assert [(entry["split"], entry["step"], entry["loss"]) for entry in read] == [
        ("train", 1, 3.0),
        ("validation", 2, 9.0),
        ("train", 2, 2.5),
        ("train", 3, 1.5),
    ]


def test_a_whole_run_is_read(make_run):
    run = read_run(make_run())
    assert (run.name, run.option("method.name"), run.option("no.such", 7)) == ("small", "dora", 7)
    steps, losses = run.series("train", "loss/age")
    assert steps.tolist() == list(range(1, 31))
    assert losses[1] == 0.5
    assert run.last("test")["step"] == 30
    assert run.last("nothing") == {}
    assert run.faces["face/000"].shape == (24, 24, 3)


def test_values_that_are_not_finite_are_left_out_of_a_curve(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    write(tmp_path / "metrics.jsonl", row(1, loss=1.0), row(2, loss=float("nan")), row(3, loss=None), row(4, loss=4.0))
    assert [part.tolist() for part in read_run(tmp_path).series("train", "loss")] == [[1, 4], [1, 4]]


def test_losses_are_summed_over_the_tasks_where_a_step_has_them_all(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    both = {"loss/age": 2.0, "loss/gender": 0.5}
    write(tmp_path / "metrics.jsonl", row(1, **both), row(2, **{"loss/age": 1.0}), row(3, **both), row(3, "validation", **both))
    steps, sums = read_run(tmp_path).summed("train", list(both))
    assert (steps.tolist(), sums.tolist()) == ([1, 3], [2.5, 2.5])


def test_a_run_that_has_just_begun_holds_its_configuration_only(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"tasks": ["age"]}))
    run = read_run(tmp_path)
    assert (run.name, [task.name for task in run.tasks], run.rows, run.predictions) == (tmp_path.name, ["age"], (), None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: (run / "config.json").unlink(), "not a run folder"),
        (lambda run: (run / "config.json").write_text("{"), r"config\.json: no JSON"),
        (lambda run: (run / "config.json").write_text("[]"), r"config\.json: holds a list, expected a JSON object"),
        (lambda run: (run / "baselines.json").write_bytes(b"\xff"), r"baselines\.json: no JSON"),
        (lambda run: (run / "faces.npz").write_bytes(b"PK"), r"faces\.npz: not readable as arrays"),
        (lambda run: np.savez(run / "faces.npz", id=np.array(["a"])), r"faces\.npz: not readable as arrays"),
        (lambda run: np.savez(run / "faces.npz", id=np.array(["a"]), image=np.zeros((1, 4, 4, 3))), r"faces\.npz: got .* expected"),
        (lambda run: (run / "predictions.parquet").write_bytes(b"no"), r"predictions\.parquet: not a readable"),
    ],
)
def test_a_folder_that_cannot_be_read_is_named_in_one_line(make_run, change, message):
    folder = make_run()
    change(folder)
    with pytest.raises(UserError, match=message) as error:
        read_run(folder)
    assert "\n" not in str(error.value)


def test_a_path_that_is_no_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_run(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file, expected a run folder"):
        read_run(tmp_path / "file")
