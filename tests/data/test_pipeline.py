import json

import numpy as np
import pytest
from faces import write_raf_db

from jaxface.data.augment import Augment
from jaxface.data.pipeline import count_records, eval_batches, train_batches
from jaxface.data.preparation import prepare
from jaxface.errors import UserError

OPTIONS = {"image_size": 24, "batch_size": 4, "seed": 0, "augment": Augment(), "sampling": "balanced"}
TASKS = ("age", "emotion")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("faces")
    write_raf_db(base / "raf", train=20, test=6)
    prepare("raf_db", base / "raf", base / "out")
    return str(base / "out")


def test_batches_are_uint8_images_with_a_label_of_every_asked_task(folder):
    batch = next(train_batches([folder], TASKS, **OPTIONS))
    assert batch["image"].shape == (4, 24, 24, 3)
    assert batch["image"].dtype == np.uint8
    assert (batch["labels"]["age"] == -1).all()
    assert batch["labels"]["emotion"].dtype == np.int32


def test_a_stream_goes_on_from_its_saved_state_to_the_bit(folder):
    stream = train_batches([folder], TASKS, **OPTIONS)
    for _ in range(3):
        next(stream)
    state = json.loads(json.dumps(stream.get_state()))
    expected = [next(stream)["image"] for _ in range(3)]
    again = train_batches([folder], TASKS, **OPTIONS)
    again.set_state(state)
    assert all(np.array_equal(next(again)["image"], image) for image in expected)


def test_two_processes_together_take_what_one_takes(folder):
    one = train_batches([folder], TASKS, **OPTIONS)
    two = [train_batches([folder], TASKS, **OPTIONS | {"batch_size": 2}, process_index=i, process_count=2) for i in range(2)]
    for _ in range(4):
        whole, halves = next(one), [next(part) for part in two]
        for index in range(4):
            assert np.array_equal(whole["image"][index], halves[index // 2]["image"][index % 2])


@pytest.mark.parametrize("batch_size", [1, 4, 5, 50])
def test_evaluation_counts_every_record_once_and_in_order(folder, batch_size):
    batches = list(eval_batches([folder, folder], "test", TASKS, image_size=16, batch_size=batch_size))
    ids = [name for batch in batches for name, valid in zip(batch["id"], batch["valid"], strict=True) if valid]
    assert ids == [f"test_{i + 1:05d}.jpg" for i in range(6)] * 2
    assert all(len(batch["image"]) == batch_size for batch in batches)
    assert count_records([folder, folder], "test") == 12


def test_missing_folders_and_splits_are_named(folder, tmp_path):
    with pytest.raises(UserError, match=r"no folder .*nowhere: write it with"):
        count_records([str(tmp_path / "nowhere")], "train")
    with pytest.raises(UserError, match="is not a prepared folder"):
        count_records([str(tmp_path)], "train")
    assert count_records([folder], "nothing", missing_ok=True) == 0
