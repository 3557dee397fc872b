"""`python -m jaxface.evaluate` on a run, and again on its stored answers."""

import json
import shutil
import sys

import numpy as np
import pytest
import scipy.special

from jaxface.errors import run_command
from jaxface.evaluate import main
from jaxface.runs.predictions_file import read_predictions


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    return ended.value.code


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from trained_run import write_trained_run

    return write_trained_run(tmp_path_factory.mktemp("evaluated"), "mtlora")


@pytest.fixture(scope="module")
def evaluated(run):
    with pytest.MonkeyPatch.context() as patch:
        assert call(patch, run, "--features", "--batch-size", "8", "--workers", "2") == 0
    return run


def test_answers_figures_temperatures_and_pictures_are_written(evaluated):
    predictions, scores = read_predictions(evaluated / "predictions.parquet"), json.loads((evaluated / "evaluation.json").read_text())
    assert len(predictions) == scores["records"] == 12
    right = (predictions.predicted("age") == predictions.labels["age"]).mean()
    assert scores["tasks"]["age"]["accuracy"] == pytest.approx(right)
    assert json.loads((evaluated / "calibration.json").read_text())["temperature"].keys() == {"age", "gender", "emotion"}
    assert (evaluated / "figures" / "confusion_emotion.png").read_bytes()[:4] == b"\x89PNG"


def test_the_report_finds_the_hardest_faces_and_the_costs(evaluated):
    from jaxface.runs.folder import read_run

    run = read_run(evaluated)
    predictions, expected, most = run.predictions, set(), 0
    for task in predictions.tasks:
        labels, logits = predictions.labels[task.name], predictions.logits[task.name]
        given = scipy.special.log_softmax(logits, axis=-1)[np.arange(len(labels)), labels]
        wrong = [row for row in np.argsort(given) if logits[row].argmax() != labels[row]]
        most = max(most, len(wrong))
        expected |= {predictions.id[row] for row in wrong[:5]}
    assert most > 5  # else nothing is left out
    assert run.hardest.keys() == expected
    assert {image.shape for image in run.hardest.values()} == {(16, 16, 3)}
    assert run.summary["parameters"]["trained"] < run.summary["parameters"]["inference"]
    assert run.summary["gflops"]["all products"] > 0


def test_features_are_kept_per_task_where_tasks_have_their_own(evaluated):
    after = read_predictions(evaluated / "predictions.parquet")
    before = read_predictions(evaluated / "features_before.parquet")
    assert {task: values.shape for task, values in after.task_features.items()} == dict.fromkeys(("age", "gender", "emotion"), (12, 24))
    assert not np.allclose(after.task_features["age"], after.task_features["gender"])
    assert before.id.tolist() == after.id.tolist()


def test_the_same_figures_come_from_the_stored_answers_without_the_model(evaluated, tmp_path, monkeypatch, capsys):
    (tmp_path / "copy").mkdir()
    for name in ("predictions.parquet", "predictions_validation.parquet", "calibration.json"):
        shutil.copy(evaluated / name, tmp_path / "copy" / name)
    assert call(monkeypatch, tmp_path / "copy", "--recompute", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((evaluated / "evaluation.json").read_text())


def test_another_set_and_split_can_be_looked_at(evaluated, tmp_path, monkeypatch, capsys):
    drawn = next((evaluated.parent / "drawn").iterdir())
    words = [evaluated, "--data", drawn, "--split", "validation", "--out", tmp_path, "--batch-size", "5"]
    assert call(monkeypatch, *words) == 0
    scores = json.loads((tmp_path / "evaluation.json").read_text())
    assert scores["about"]["split"] == "validation"
    assert "overall" in capsys.readouterr().out
    assert json.loads((tmp_path / "calibration.json").read_text()) == json.loads((evaluated / "calibration.json").read_text())


def test_an_evaluation_elsewhere_leaves_the_run_alone_and_is_whole_by_itself(evaluated, tmp_path, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in evaluated.rglob("*")}
    assert call(monkeypatch, evaluated, "--out", tmp_path, "--batch-size", "5") == 0
    assert {path: path.stat().st_mtime_ns for path in evaluated.rglob("*")} == before
    scores = json.loads((tmp_path / "evaluation.json").read_text())
    assert scores["tasks"]["age"]["calibration"]["temperature"] is not None
    assert call(monkeypatch, tmp_path, "--recompute") == 0
    assert json.loads((tmp_path / "evaluation.json").read_text()) == scores


def test_a_damaged_test_record_is_left_out_and_the_rest_has_its_figures(evaluated, tmp_path, monkeypatch):
    drawn = next((evaluated.parent / "drawn").iterdir())
    shutil.copytree(drawn, tmp_path / "faces")
    (tmp_path / "faces/digests.json").unlink(missing_ok=True)
    (path,) = (tmp_path / "faces").glob("faces-test*")
    data = bytearray(path.read_bytes())
    data[data.find(b"\x89PNG") + 60] ^= 4
    path.write_bytes(data)
    assert call(monkeypatch, evaluated, "--data", tmp_path / "faces", "--out", tmp_path / "out", "--batch-size", "5") == 0
    assert json.loads((tmp_path / "out/evaluation.json").read_text())["records"] == 11


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere"], "nowhere is not a run folder"),
        (["RUN", "--split", "holiday"], "no split 'holiday'"),
        (["RUN", "--data", "nowhere"], "no folder nowhere"),
        (["RUN", "--groups", "nowhere.csv:race"], "--groups nowhere.csv"),
        (["RUN", "--batch-size", "0"], "batch_size 0"),
        (["EMPTY", "--recompute"], "no such file"),
    ],
)
def test_wrong_input_is_one_line_and_exit_status_2(run, tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    known = {"RUN": run, "EMPTY": tmp_path}
    assert call(monkeypatch, *(known.get(word, word) for word in words)) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert printed[-1].startswith("error: ")
    assert says in printed[-1]
