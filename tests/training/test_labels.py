"""What is said of labels before anything is trained, and of records that cannot be read where features are kept."""

import types

import cv2
import numpy as np
import pytest
from faces import noise

from jaxface.data.augment import Augment
from jaxface.data.pipeline import EvalBatches, Joined, TrainBatches
from jaxface.data.preparation import prepare
from jaxface.errors import UserError
from jaxface.runs.config import Config, DataOptions
from jaxface.training.batches import Features
from jaxface.training.labels import check_labels
from jaxface.training.setup import tell_mirrors


@pytest.fixture
def make_set(tmp_path):
    def make(rows, header="path,gender,emotion,split"):
        for index in range(len(rows)):
            cv2.imwrite(str(tmp_path / f"{index}.png"), noise(24, 24, index))
        (tmp_path / "manifest.csv").write_text("\n".join([header, *(f"{i}.png,{row}" for i, row in enumerate(rows))]) + "\n")
        prepare("manifest", tmp_path, tmp_path / "out")
        return str(tmp_path / "out")

    return make


def test_a_task_without_a_training_label_is_refused_with_what_to_do(make_set):
    folder = make_set(["m,,train", "f,,train", "m,happy,validation"])
    with pytest.raises(UserError, match=r"none of the 2 training records of .* has a label of emotion: leave it out with --tasks gender"):
        check_labels([folder], ["gender", "emotion"])


def test_a_set_that_nothing_validates_is_refused(make_set):
    folder = make_set([*["m,sad,train"] * 3, ",happy,validation"])
    check_labels([folder], ["gender", "emotion"])
    with pytest.raises(UserError, match=r"no validation record of .* has a label of gender: training could not tell when to stop"):
        check_labels([folder], ["gender"])


def test_one_record_to_draw_from_is_none_for_batch_norm(make_set):
    folder = make_set(["m,,train", ",sad,train", "f,,validation"])
    with pytest.raises(UserError, match=r"1 training record to learn from; expected at least 2, for batch norm"):
        check_labels([folder], ["gender"], sampling="balanced", least=2)
    check_labels([folder], ["gender"], sampling="shuffle", least=2)


def test_classes_with_few_labels_and_tasks_that_nothing_validates_are_one_line_each(make_set, capsys):
    folder = make_set([*["m,sad,train"] * 12, *["f,,train"] * 3, ",happy,validation"])
    capsys.readouterr()
    check_labels([folder], ["gender", "emotion"])
    few, unvalidated = capsys.readouterr().err.splitlines()
    assert few.startswith("classes with fewer than 10 training labels: gender female 3, emotion surprise 0")
    assert "male 12" not in few
    assert unvalidated == "tasks without a validation label: gender"


def test_batches_of_features_name_the_unreadable_records_that_batches_of_images_name(make_set, monkeypatch):
    from jaxface.data import pipeline

    folder = make_set([*["m,sad,train"] * 12, "m,sad,validation"])
    real = pipeline.decode
    records = Joined([folder], "train", ["gender"])
    broken = {records[index]["image"] for index in (2, 5)}

    def decode(data, least=0):
        if data in broken:
            raise pipeline.Unreadable("spoilt")
        return real(data, least)

    monkeypatch.setattr(pipeline, "decode", decode)
    data = types.SimpleNamespace(sampling="shuffle", max_repeat=0.0)
    config = types.SimpleNamespace(data=data, tasks=("gender",), seed=3, batch_size=4)
    evaluated = EvalBatches(records, image_size=8, batch_size=4)
    images = types.SimpleNamespace(
        config=config, count=lambda name: len(records), evaluation=lambda name: (evaluated[index] for index in range(len(evaluated)))
    )
    cached = Features(images, lambda batch: np.asarray(batch, np.float32).reshape(1, -1, 8 * 8 * 3))
    features = cached.train(0)
    batches = TrainBatches(records, image_size=8, batch_size=4, seed=3, augment=None, sampling="shuffle")
    for index in range(6):
        expected, found = batches[index], next(features)
        assert found["skipped"].tolist() == expected["skipped"].tolist()
        assert found["id"].tolist() == expected["id"].tolist()
    assert expected["id"].tolist()
    for expected, found in zip(images.evaluation("train"), cached.evaluation("train"), strict=True):
        assert found["id"].tolist() == expected["id"].tolist()
        assert found["valid"].tolist() == expected["valid"].tolist()
        assert np.array_equal(found["image"], expected["image"].reshape(4, -1))
        assert np.array_equal(found["labels"]["gender"], expected["labels"]["gender"])


@pytest.mark.parametrize(
    ("tasks", "data", "told"),
    [
        (["digit"], {}, True),
        (["digit", "gender"], {}, False),  # faces
        (["digit"], {"augment": False}, False),
        (["digit"], {"changes": Augment(flip=0.0)}, False),
    ],
)
def test_mirrored_pictures_are_told_where_they_are_no_faces(tasks, data, told, capsys):
    tell_mirrors(Config(tasks=tuple(tasks), data=DataOptions(sets=("a set",), **data)))
    assert ("--data.changes.flip 0" in capsys.readouterr().err) == told
