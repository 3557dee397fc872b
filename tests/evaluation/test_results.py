"""The figures of an evaluation, from stored answers alone."""

import json

import numpy as np
import pytest
import sklearn.metrics
from made_answers import answers

from jaxface.data.tasks import AGE, GENDER, MISSING
from jaxface.evaluation.metrics import source_matrices
from jaxface.evaluation.predictions import Predictions
from jaxface.evaluation.results import score
from jaxface.report.pictures import write_pictures
from jaxface.runs.evaluate_run import evaluate_again
from jaxface.runs.predictions_file import read_predictions, write_predictions


def test_figures_of_every_source_are_scikit_learns_and_their_mean_is_the_average():
    both = answers(1.5, count=80)
    sources = np.array(["utkface", "fairface"] * 40)
    found = score(Predictions(both.tasks, both.id, both.labels, both.logits, source=sources))
    for task in both.tasks:
        values = found["tasks"][task.name]
        for source, own in values["sources"].items():
            rows = (sources == source) & (both.labels[task.name] != MISSING)
            y, p = both.labels[task.name][rows], both.predicted(task.name)[rows]
            assert own["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(y, p))
            assert own["balanced_accuracy"] == pytest.approx(sklearn.metrics.balanced_accuracy_score(y, p))
        assert values["average_accuracy"] == pytest.approx(np.mean([own["accuracy"] for own in values["sources"].values()]))
        assert values["interval"]["accuracy"][0] < values["accuracy"] < values["interval"]["accuracy"][1]
    averages = [values["average_accuracy"] for values in found["tasks"].values()]
    assert found["summary"]["overall_accuracy"] == pytest.approx(np.mean(averages))


def test_sources_stand_in_the_order_of_their_names():
    names = ["utkface", "fairface", "lagenda", "celeba_hq", "raf_db", "vggface2", "mine", "a"]
    plain = answers(1.5, count=80)
    found = score(Predictions(plain.tasks, plain.id, plain.labels, plain.logits, source=np.array(names * 10)))
    assert all(list(values["sources"]) == sorted(names) for values in found["tasks"].values())
    for task in plain.tasks:
        matrices = source_matrices(Predictions(plain.tasks, plain.id, plain.labels, plain.logits, source=np.array(names * 10)), task)
        for place, name in enumerate(names):
            y, p = plain.labels[task.name][place::8], plain.predicted(task.name)[place::8]
            known = y != MISSING
            assert (matrices[name] == sklearn.metrics.confusion_matrix(y[known], p[known], labels=range(task.num_classes))).all()


def test_estimated_ages_are_no_part_of_the_average():
    both = answers(1.5, count=80, tasks=(AGE, GENDER))
    sources = np.array(["vggface2", "fairface"] * 40)
    found = score(Predictions(both.tasks, both.id, both.labels, both.logits, source=sources))["tasks"]
    assert found["age"]["average_accuracy"] == found["age"]["sources"]["fairface"]["accuracy"]
    assert found["gender"]["average_accuracy"] == pytest.approx(np.mean([s["accuracy"] for s in found["gender"]["sources"].values()]))


def test_a_temperature_changes_calibration_and_no_answer():
    plain, scaled = score(answers(2.5)), score(answers(2.5), {"age": 0.4})
    assert plain["tasks"]["age"]["accuracy"] == scaled["tasks"]["age"]["accuracy"]
    fit = scaled["tasks"]["age"]["calibration"]
    logits, labels = answers(2.5).logits["age"], answers(2.5).labels["age"]
    z = logits[labels >= 0].astype(np.float64) / 0.4
    by_hand = sklearn.metrics.log_loss(labels[labels >= 0], np.exp(z) / np.exp(z).sum(1, keepdims=True), labels=range(9))
    assert fit["negative_log_likelihood_calibrated"] == pytest.approx(by_hand)
    assert plain["tasks"]["age"]["calibration"].keys() == {"temperature", "error", "negative_log_likelihood"}


def test_all_figures_come_again_from_the_stored_answers(make_run):
    folder = make_run("again")
    predictions, first = evaluate_again(folder)
    write_pictures(folder / "figures", predictions, {})
    assert first == json.loads((folder / "evaluation.json").read_text())
    json.dumps(first, allow_nan=False)
    assert {path.name for path in (folder / "figures").iterdir()} >= {"confusion_age.png", "reliability_gender.png"}


def test_features_of_each_task_are_kept(tmp_path):
    plain = answers(1.0, count=6)
    features = {task.name: np.random.default_rng(i).normal(size=(6, 4)).astype(np.float32) for i, task in enumerate(plain.tasks)}
    stored = Predictions(plain.tasks, plain.id, plain.labels, plain.logits, task_features=features)
    write_predictions(tmp_path / "p.parquet", stored)
    again = read_predictions(tmp_path / "p.parquet")
    assert again.features is None
    for task, values in features.items():
        np.testing.assert_array_equal(again.task_features[task], values)
    with pytest.raises(ValueError, match="age: shape"):
        Predictions(plain.tasks, plain.id, plain.labels, plain.logits, task_features={"age": np.zeros((5, 4))})
