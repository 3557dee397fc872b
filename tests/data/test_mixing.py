import numpy as np
import pytest

from jaxface.data.augment import Augment
from jaxface.data.mixing import mix_pairs
from jaxface.data.pipeline import train_batches
from jaxface.data.preparation import prepare_synthetic
from jaxface.objectives.losses import get_loss, masked_sum

torch = pytest.importorskip("torch")
OPTIONS = {"image_size": 32, "batch_size": 8, "seed": 0, "sampling": "shuffle"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixing") / "drawn"
    prepare_synthetic(folder, style="paint", count=60, test_count=4, size=32, seed=0, missing=0.3)
    return str(folder)


def pairs(count, **options):
    """Black rows of class 0 beside rows of level 200 of class 1, mixed."""
    images = np.zeros((2 * count, 40, 40, 3), np.uint8)
    images[1::2] = 200
    labels = {"gender": np.arange(2 * count) % 2}
    mixed = mix_pairs(images, labels, [np.random.default_rng(index) for index in range(count)], **{"mixup": 0, "cutmix": 0, **options})
    return images, labels, mixed


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_the_share_of_the_labels_is_the_share_of_the_pixels(kind):
    images, labels, mixed = pairs(50, **{kind: 1.0})
    of_the_white = images.mean(axis=(1, 2, 3)) / 200
    expected = np.where(labels["gender"] == 1, mixed["share"], 1 - mixed["share"])
    np.testing.assert_allclose(of_the_white, expected, atol=0.003)
    assert (mixed["labels"]["gender"] == 1 - labels["gender"]).all()
    assert mixed["share"].min() >= 0.5
    assert len(np.unique(mixed["share"])) > 40
    levels = len(np.unique(images))
    assert levels > 10 if kind == "mixup" else levels == 2


def test_the_share_has_the_beta_distribution_folded_at_a_half():
    from scipy.stats import beta, kstest

    shares = pairs(4000, mixup=0.4)[2]["share"][::2]
    assert kstest(shares, lambda x: beta.cdf(x, 0.4, 0.4) - beta.cdf(1 - x, 0.4, 0.4)).pvalue > 0.01


def test_rows_that_carry_other_tasks_than_their_neighbours_stay_as_they_are():
    images = np.stack([np.full((8, 8, 3), level, np.uint8) for level in (0, 200, 0, 200)])
    labels = {"gender": np.array([0, 1, 0, 1]), "age": np.array([3, -1, 2, 5])}
    mixed = mix_pairs(images, labels, [np.random.default_rng(0), np.random.default_rng(1)], mixup=1.0, cutmix=0)
    assert mixed["share"][:2].tolist() == [1, 1]
    assert mixed["labels"]["age"].tolist() == [3, -1, 5, 2]
    assert (images[:2].mean(axis=(1, 2, 3)) == [0, 200]).all()
    assert 0 < images[2].mean() < 200


def test_the_loss_of_mixed_images_is_torchs_with_soft_labels():
    rng = np.random.default_rng(0)
    logits, labels, other = rng.normal(size=(6, 7)).astype(np.float32), np.array([1, 2, -1, 6, 0, 3]), np.array([4, 2, -1, 0, 1, 5])
    share = rng.uniform(0.5, 1, 6).astype(np.float32)
    known = labels >= 0
    target = share[known, None] * np.eye(7)[labels[known]] + (1 - share[known, None]) * np.eye(7)[other[known]]
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits[known]), torch.tensor(target), reduction="sum")
    assert float(masked_sum(get_loss("cross_entropy"), logits, labels, (share, other))) == pytest.approx(float(expected), rel=1e-5)


def test_mixed_batches_are_the_same_each_time_and_carry_what_the_step_needs(folder):
    first, again = (next(train_batches([folder], ["age"], augment=Augment(cutmix=1.0, mixup=0.2), **OPTIONS)) for _ in range(2))
    plain = next(train_batches([folder], ["age"], augment=Augment(), **OPTIONS))
    assert np.array_equal(first["image"], again["image"])
    assert first["mixed"]["share"].dtype == np.float32
    assert "mixed" not in plain
    mixed = first["mixed"]["share"] < 1
    assert mixed.any()
    assert np.array_equal(first["image"][~mixed], plain["image"][~mixed])
    assert np.array_equal(first["labels"]["age"], plain["labels"]["age"])


def test_every_pair_of_the_stream_is_mixed_by_numbers_of_its_own_on_whichever_process_it_is(folder):
    changes = Augment(cutmix=1.0, mixup=0.2)
    one = train_batches([folder], ["gender"], augment=changes, **OPTIONS)
    two = [
        train_batches([folder], ["gender"], augment=changes, **OPTIONS | {"batch_size": 4}, process_index=i, process_count=2)
        for i in range(2)
    ]
    shares = []
    for _ in range(3):
        whole, halves = next(one), [next(part) for part in two]
        assert np.array_equal(whole["image"], np.concatenate([half["image"] for half in halves]))
        assert np.array_equal(whole["mixed"]["share"], np.concatenate([half["mixed"]["share"] for half in halves]))
        shares.append(whole["mixed"]["share"][::2])
    mixed = np.concatenate(shares)
    mixed = mixed[mixed < 1]
    assert len(mixed) > 5
    assert len(np.unique(mixed)) == len(mixed)
