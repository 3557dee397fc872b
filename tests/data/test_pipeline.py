import json

import cv2
import numpy as np
import pytest
from faces import noise, write_raf_db

from jaxface.data.augment import Augment, apply, draw, resize
from jaxface.data.pipeline import count_records, eval_batches, train_batches
from jaxface.data.preparation import prepare
from jaxface.data.sampling import Shuffled, Weighted, sample_weights, weighted_shares
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


def test_augmentation_is_a_function_of_its_numbers_and_flips_half_of_the_images():
    image = noise(40, 30)
    numbers = [draw(Augment(), np.random.default_rng(i)) for i in range(400)]
    assert np.array_equal(apply(image, numbers[0], 24), apply(image, numbers[0], 24))
    assert np.mean([n.flip for n in numbers]) == pytest.approx(0.5, abs=0.08)
    assert np.mean([n.hole is not None for n in numbers]) == pytest.approx(0.5, abs=0.08)
    areas = [n.hole[2] * n.hole[3] for n in numbers if n.hole]
    assert min(areas) >= 0.02
    assert max(areas) <= 0.2


def test_no_change_is_a_plain_resize():
    still = Augment(flip=0, jitter=0, degrees=0, translate=0, scale=(1, 1), erase=0)
    image = cv2.GaussianBlur(noise(48, 48), (0, 0), 4)
    changed = apply(image, draw(still, np.random.default_rng(0)), 48)
    assert np.abs(changed.astype(int) - image).max() <= 1
    smaller = apply(image, draw(still, np.random.default_rng(0)), 24)
    assert np.abs(smaller.astype(int) - resize(image, 24)).max() <= 3


def test_evaluation_resizes_as_pil_does():
    from PIL import Image

    for height, width in ((96, 72), (20, 31)):
        image = cv2.GaussianBlur(noise(height, width), (0, 0), 1.5)
        expected = np.asarray(Image.fromarray(image).resize((36, 36), Image.BILINEAR)).astype(int)
        assert np.abs(resize(image, 36) - expected).mean() < 2


def test_a_shuffled_epoch_holds_every_record_once():
    order = Shuffled(13, seed=4)
    epochs = [[order[e * 13 + k] for k in range(13)] for e in range(3)]
    assert all(sorted(epoch) == list(range(13)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert [order[k] for k in (30, 2, 17)] == [Shuffled(13, seed=4)[k] for k in (30, 2, 17)]


def test_weighted_sampling_reproduces_the_thesis_table_of_age_shares():
    # Table 3.2: a sample carries gender too, whose weight is about one
    counts = [2935, 15699, 16032, 29784, 24462, 17976, 14413, 10618, 4828]
    ages = np.repeat(np.arange(9), counts)
    genders = np.random.default_rng(0).permutation(np.arange(len(ages)) % 2)
    labels = {"age": ages, "gender": genders}
    shares = weighted_shares(labels, {"age": 9, "gender": 2}, sample_weights(labels))["age"]
    printed = [6.63, 11.31, 11.36, 16.37, 14.56, 12.14, 10.89, 9.44, 7.31]
    np.testing.assert_allclose(100 * shares, printed, atol=0.1)


def test_weighted_draws_follow_the_weights():
    order = Weighted(np.array([1.0, 0.0, 3.0]), seed=1)
    drawn = np.bincount([order[k] for k in range(4000)], minlength=3) / 4000
    np.testing.assert_allclose(drawn, [0.25, 0, 0.75], atol=0.03)
