"""What pixels alone tell, against scikit-learn on the same thumbnails."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from jaxface.evaluation import baselines


def batches(count, seed, size=20):
    """Batches whose left half is the brighter the higher the class; a third of the labels and the last row of each are missing."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        image = rng.integers(0, 230, (size, baselines.SIDE, baselines.SIDE, 3), dtype=np.uint8)
        labels = rng.integers(0, 3, size)
        image[:, :, : baselines.SIDE // 2] += (8 * labels).astype(np.uint8)[:, None, None, None]
        image[..., :] = image[..., :1]  # grey
        labels = np.where(rng.random(size) < 1 / 3, -1, labels)
        yield {"image": image, "labels": {"age": labels, "gender": np.full(size, -1)}, "valid": np.arange(size) < size - 1}


def pixels(count, seed):
    rows = list(batches(count, seed))
    keep = np.concatenate([batch["valid"] & (batch["labels"]["age"] >= 0) for batch in rows])
    images = np.concatenate([batch["image"] for batch in rows])[keep]
    return images[..., 0].reshape(len(images), -1) / 255, np.concatenate([batch["labels"]["age"] for batch in rows])[keep]


def test_the_accuracy_of_pixels_is_that_of_logistic_regression_on_the_records_that_have_a_label():
    found = baselines.pixel_accuracy(lambda: batches(4, 0), lambda: batches(2, 1), ("age", "gender"))
    (x, y), (x_test, y_test) = pixels(4, 0), pixels(2, 1)
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=1e-3, max_iter=200).fit(scaler.transform(x), y)
    assert found == {"age": pytest.approx(model.score(scaler.transform(x_test), y_test), abs=1e-6)}  # nobody has a gender
    assert 1 / 3 < found["age"] < 1


def test_no_more_images_are_read_than_the_linear_model_takes(monkeypatch):
    monkeypatch.setattr(baselines, "MOST", 30)
    read = []
    baselines.pixel_accuracy(lambda: (read.append(batch) or batch for batch in batches(9, 0)), lambda: batches(1, 1), ("age",))
    assert len(read) == 2
