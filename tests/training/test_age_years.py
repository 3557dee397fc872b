"""Age in single years by ordinal regression, a whole small run."""

import json

import cv2
import numpy as np
import pytest

from jaxface.data.preparation import prepare
from jaxface.data.records import read_labels
from jaxface.data.synthetic import draw_face
from jaxface.data.tasks import age_group
from jaxface.models.variants import VARIANTS, EncoderConfig
from jaxface.runs.config import RANDOM, Config, DataOptions, EncoderOptions, MethodOptions, OptimizerOptions
from jaxface.runs.predictions_file import read_predictions
from jaxface.training.loop import Run

VARIANTS.add("tiny", EncoderConfig(16, 2, 2, 32, 6, 12, output=16, pool_heads=2))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run on a table of faces with ages in years, one as a group only, and the years of its test records."""
    folder = tmp_path_factory.mktemp("years")
    rows, years = ["path,age,split"], []
    for index in range(24):
        face = draw_face(index, 0, size=24)
        cv2.imwrite(str(folder / f"{index}.png"), face.image)
        age = "20-29" if index == 3 else f"{face.years:.1f}"
        rows.append(f"{index}.png,{age},{'test' if index % 4 == 3 else 'train'}")
        if index % 4 == 3:
            years.append(-1 if index == 3 else int(float(age)))
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    prepare("manifest", folder, folder / "faces")
    config = Config(
        name="run",
        out=str(folder / "runs"),
        tasks=("age_years",),
        encoder=EncoderOptions(weights=RANDOM, variant="tiny"),
        method=MethodOptions("lp"),
        data=DataOptions(sets=(str(folder / "faces"),), augment=False),
        optimizer=OptimizerOptions(head=1e-2),
        losses={"age_years": "coral"},
        batch_size=4,
        epochs=2,
    )
    assert read_labels(folder / "faces", "test")["age_years"].tolist() == years
    return Run(config).run()


def test_answers_are_reported_in_years_and_mapped_back_to_the_groups(run):
    saved = read_predictions(run / "predictions.parquet")
    assert [task.name for task in saved.tasks] == ["age_years", "age"]
    answers = saved.predicted("age_years")
    assert saved.predicted("age").tolist() == [age_group(year) for year in answers]
    known = saved.labels["age_years"] >= 0
    test = json.loads((run / "result.json").read_text())["test"]
    error = np.abs(answers - saved.labels["age_years"])[known].mean()
    assert test["mean_absolute_error/age_years"] == pytest.approx(error)
    assert test["accuracy/age"] == pytest.approx(np.mean(saved.predicted("age") == saved.labels["age"]))


def test_a_record_with_a_group_and_no_years_still_counts_for_the_group(run):
    saved = read_predictions(run / "predictions.parquet")
    assert (saved.labels["age_years"] == -1).sum() == 1
    assert (saved.labels["age"] >= 0).all()


def test_the_epoch_with_the_best_group_accuracy_is_kept(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validations = [line for line in lines if line["split"] == "validation"]
    assert all(line["accuracy"] == line["accuracy/age"] for line in validations)
    best = json.loads((run / "best" / "info.json").read_text())
    accuracies = [line["accuracy"] for line in validations]
    assert best["accuracy"] == max(accuracies)
    assert best["epoch"] == validations[accuracies.index(max(accuracies))]["epoch"]  # the first of equals
