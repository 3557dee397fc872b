"""Temperatures against an optimizer of torch's, and the file that keeps them."""

import json

import numpy as np
import pytest
import torch
from made_answers import answers

from jaxface.data.tasks import MISSING
from jaxface.errors import UserError
from jaxface.evaluation.calibration import fit_temperature
from jaxface.runs.temperatures import FILE, read_temperatures, write_temperatures


def overconfident(factor, count=400, classes=5, seed=0):
    """Labels drawn from a softmax, and its logits times a factor."""
    random = np.random.default_rng(seed)
    logits = 2 * random.normal(size=(count, classes))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([random.choice(classes, p=row) for row in shares])
    return factor * logits, labels


@pytest.mark.parametrize("factor", [0.3, 1.0, 6.0])
def test_the_temperature_is_the_one_that_torch_finds(factor):
    logits, labels = overconfident(factor)
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_t], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits) / log_t.exp(), torch.from_numpy(labels))
        loss.backward()
        return loss

    optimizer.step(closure)
    assert fit_temperature(logits, labels) == pytest.approx(log_t.exp().item(), rel=1e-4)


def test_missing_labels_count_for_nothing():
    logits, labels = overconfident(2.0)
    hidden = labels.copy()
    hidden[100:] = MISSING
    assert fit_temperature(logits, hidden) == fit_temperature(logits[:100], labels[:100])
    assert fit_temperature(logits, np.full_like(labels, MISSING)) == 1.0


def test_temperatures_are_read_for_the_model_they_were_fitted_on(tmp_path):
    found = write_temperatures(tmp_path, answers(3.0), "abc")
    assert found.keys() == {"age", "gender", "emotion"}
    assert read_temperatures(tmp_path, "abc") == found
    assert read_temperatures(tmp_path, "another") == {}
    assert read_temperatures(tmp_path / "nowhere") == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON"),
        ("[]", "holds a list"),
        (json.dumps({"temperature": {"age": "warm"}}), "not a file of temperatures"),
        ('{"temperature": {"age": NaN}}', r"not a file of temperatures \(temperature of age: expected a number above 0"),
        ('{"temperature": {"age": 0}}', r"not a file of temperatures \(temperature of age: expected a number above 0"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, content, message):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(UserError, match=rf"calibration\.json: {message}") as error:
        read_temperatures(tmp_path)
    assert "\n" not in str(error.value)
