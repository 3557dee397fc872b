"""`python -m jaxface.compare` as a user calls it, on small models."""

import json
import sys

import cv2
import numpy as np
import pytest

from jaxface.compare import main
from jaxface.errors import run_command
from small_models import KINDS, random_tensors
from weights_convert.checkpoint import write_checkpoint

pytest.importorskip("torch")

KIND = "core without class token, MLP not 4x"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    write_checkpoint(path, KINDS[KIND], random_tensors(KINDS[KIND]))
    return path


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "face.png"
    cv2.imwrite(str(path), np.random.RandomState(0).randint(0, 256, (50, 40, 3), np.uint8))
    return path


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder: exit status, standard output, standard error."""

    def run(*words):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.setattr(sys, "argv", ["compare", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            run_command(main)
        return ended.value.code, *capsys.readouterr()

    return run


def test_equal_models_end_with_status_0_a_row_a_value_and_a_picture(command, checkpoint, photo, tmp_path):
    status, printed, _ = command("--weights", checkpoint, "--against", "open_clip", "--photos", photo, "--repeats", 1)
    assert status == 0
    values = ["embedding", "blocks.0", "blocks.1", "tokens", "features", "text.blocks.0", "text.blocks.1", "text.features", "logits"]
    rows = [line.split("│") for line in printed.splitlines() if line.startswith("│")]
    assert [row[1].strip() for row in rows] == values
    assert all(float(row[2]) < float(row[4]) < 2e-6 for row in rows)
    assert "images/s" in printed
    picture = cv2.imread(str(tmp_path / "compare.png"))
    assert picture is not None
    assert picture.shape[1] > 1000


def test_a_difference_past_the_tolerance_is_marked_and_ends_with_status_1(command, checkpoint):
    status, printed, _ = command("--weights", checkpoint, "--against", "timm", "--tolerance", 1e-12, "--repeats", 0)
    assert status == 1
    assert printed.count("beyond its budget") == 6


def test_a_model_that_differs_in_one_bias_is_found_at_its_layer(command, checkpoint, tmp_path):
    tensors = random_tensors(KINDS[KIND])
    tensors["visual.blocks.1.mlp.fc.bias"] = tensors["visual.blocks.1.mlp.fc.bias"] + 0.01
    write_checkpoint(tmp_path / "other.safetensors", KINDS[KIND], tensors)
    words = ("--weights", checkpoint, "--their-weights", tmp_path / "other.safetensors", "--against", "timm", "--repeats", 0)
    status, printed, _ = command(*words, "--json")
    assert status == 1
    found = json.loads(printed)
    assert found["first_departure"] == "blocks.1.mlp.fc"
    assert list(found["parameters"]) == ["blocks.1.mlp.fc.bias"]
    assert {"name", "error", "original_error", "budget"} == set(found["layers"][0])
    assert found["about"]["weights"] != found["about"]["their_weights"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--against", "timm", "--image-size", 64),
            "rescale its rotary positions at other sizes than its 32 x 32; compare",
        ),
        (("--against", "meta"), "expected --meta-code DIR, a checkout of facebookresearch/perception_models"),
        (("--against", "timm", "--photos", "nowhere"), "nowhere: no such file or folder"),
        (("--against", "timm", "--batch-size", 0), "batch_size 0: expected 1 to 1024"),
        (("--against", "keras"), "invalid choice 'keras'"),
        (("--against", "timm", "--photos", __file__), "test_compare.py: cannot be decoded as an image"),
        (("--against", "open_clip", "--train", 3), "expected --against timm, without --their-weights"),
        (("--jax", "mine.py:make", "--torch", "mine.py:make", "--show"), "--show draws what a built-in encoder attends to"),
        (("--jax", "mine.py:make"), "--jax and --torch go together"),
        (("--jax", "breaks.py:make", "--torch", "breaks.py:make"), r"breaks.py:make: ValueError: no\nway"),
        (("--jax", "breaks.py:number", "--torch", "breaks.py:number"), "expected an nnx.Module and a torch.nn.Module, got int and int"),
        (("--jax", "mine.py", "--torch", "mine.py:make"), "expected FILE.py:NAME"),
        (("--jax", "mine.py:make", "--torch", "mine.py:make"), "mine.py:make: expected FILE.py:NAME, a function of a Python file"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(words, message, command, checkpoint, tmp_path):
    (tmp_path / "breaks.py").write_text("def make():\n    raise ValueError('no\\nway')\n\n\ndef number():\n    return 3\n")
    status, _, printed = command("--weights", checkpoint, "--repeats", 0, *words)
    assert status == 2
    assert message in printed
    assert len(printed.strip().splitlines()) == 1
    assert not (tmp_path / "compare.png").exists()
