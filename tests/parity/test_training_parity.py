"""Training runs beside timm's with PEFT and torch: together in float64, and told apart from rounding where they part."""

from dataclasses import replace

import numpy as np
import optax
import pytest

from jaxface.originals import training_parity
from jaxface.originals.training_parity import Course, configuration, judged, made_batches, run_both
from jaxface.runs.base import Base
from jaxface.runs.model import make_parts
from jaxface.weights import load_encoder
from small_models import KINDS, random_tensors
from weights_convert.checkpoint import write_checkpoint
from weights_convert.towers import Towers

TOWERS = Towers(replace(KINDS["core"].vision, depth=1, image_size=16))
PHOTOS = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    write_checkpoint(path, TOWERS, random_tensors(TOWERS))
    return load_encoder(path, config=TOWERS)


def in_double(encoder, method, steps):
    """The course of both runs in float64, and the numbers that train."""
    config = configuration(method, steps, rank=2)
    parts = make_parts(config, Base(encoder, None, "", None), np.float32)
    return run_both(config, encoder, parts, made_batches(PHOTOS, steps, 4), "float64")


def test_dora_trains_as_peft_has_it_to_the_last_digits_of_float64(encoder):
    course, trained = in_double(encoder, "dora", 4)
    assert trained[0] == trained[1]
    assert course.apart().max() < 1e-13
    assert max(course.parameters) < 1e-9
    assert np.allclose(*np.asarray(course.norms).T, rtol=1e-12)


def test_an_optimizer_that_is_another_parts_the_runs_in_float64_too(encoder, monkeypatch):
    monkeypatch.setattr(training_parity, "make_optimizer", lambda options, groups, steps: optax.adamw(options.head, weight_decay=0.0))
    course, trained = in_double(encoder, "lp", 3)
    found = judged("lp", trained, {"float32": course, "float64": course})
    assert found.verdict == "differs"
    assert found.reason.startswith("the float64 runs part, too, at step 2: losses")


def course(losses, apart=0.0):
    return Course(list(zip(losses * (1 + np.asarray(apart)), losses, strict=True)), [], [0.0])


EXACT = np.linspace(3, 2, 5)
LOST = EXACT * [1, 1, np.nan, 1, 1]
GROWING = np.geomspace(1e-7, 1e-2, 5)
RUNS = {
    "together": (course(EXACT, 1e-6), course(EXACT), "equal", None, None),
    "rounding that grows in both": (course(EXACT * (1 - GROWING), 2 * GROWING), course(EXACT), "equal", 4, "rounding: from the float64"),
    "in ours alone": (course(EXACT, 3 * GROWING), course(EXACT), "differs", 4, "rounding: from the float64 run ours is at most"),
    "in float64 too": (course(EXACT, GROWING), course(EXACT, GROWING), "differs", 4, "the float64 runs part, too, at step 1"),
    "no number": (
        course(EXACT * [1, 1, np.nan, 1, 1]),
        course(EXACT * [1, 1, np.nan, 1, 1]),
        "differs",
        3,
        "float64 runs part, too, at step 3",
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_runs_that_part_say_where_and_whether_it_is_rounding(name):
    single, double, verdict, parted, reason = RUNS[name]
    found = judged("lora", (7, 7), {"float32": single, "float64": double})
    assert (found.verdict, found.parted) == (verdict, parted)
    assert reason is None or reason in found.reason
    assert judged("lora", (7, 8), {"float32": single, "float64": double}).verdict == "differs"


def test_batches_lack_labels_and_sometimes_all_of_a_task():
    batches = made_batches(PHOTOS, 20, 5)
    known = [{task: int((labels >= 0).sum()) for task, labels in batch["labels"].items()} for batch in batches]
    assert known[9]["age"] == known[19]["emotion"] == 0
    assert 0.5 < np.mean([count for each in known[:9] for count in each.values()]) / 5 < 0.85
    assert not np.array_equal(batches[0]["image"], batches[1]["image"])
