"""The scripts in `examples/`: each does what it says, here in small."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from faces import write_photo
from registries import all_as_before

import jaxface
from jaxface.models.encoder import random_encoder
from jaxface.models.tree import arrays_of
from jaxface.models.variants import get_variant

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(request, monkeypatch):
    """The module of an example; what it registers is forgotten after the test."""
    spec = importlib.util.spec_from_file_location(request.param, EXAMPLES / f"{request.param}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, request.param, module)  # dataclasses look there for their annotations
    with all_as_before():
        spec.loader.exec_module(module)
        yield module


def of(name):
    return pytest.mark.parametrize("example", [name], indirect=True)


@of("own_loop")
def test_the_own_loop_learns_and_leaves_frozen_kernels_alone(example, tmp_path):
    example.prepare("synthetic", Path("paint"), tmp_path / "drawn", options=example.DrawnSet(count=60, test_count=12))
    model, losses = example.train(str(tmp_path / "drawn"), steps=12, batch_size=16, rank=2)
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    before, after = arrays_of(random_encoder(get_variant("PE-Mini-10-60"), 0)), arrays_of(model.encoder)
    assert np.array_equal(after["stages.0.mlp.fc.kernel.base"], before["stages.0.mlp.fc.kernel"])
    assert np.abs(after["stages.0.mlp.fc.kernel.b"]).max() > 0
    found = example.accuracy(model, str(tmp_path / "drawn"), 8)
    assert set(found) == set(example.TASKS)
    assert all(0 <= 12 * share <= 12 and (12 * share) % 1 == pytest.approx(0, abs=1e-9) for share in found.values())


@of("bitfit_and_vera")
def test_vera_is_its_formula_and_merges_into_it(example):
    random = np.random.default_rng(0)
    x, w = random.normal(size=(3, 24)), random.normal(size=(24, 10))
    kernel = example.Vera(jnp.asarray(w, jnp.float32), rank=5)
    assert np.allclose(jnp.asarray(x, jnp.float32) @ kernel, x @ w, atol=1e-4)  # starts as W
    d, gains = random.normal(size=5), random.normal(size=10)
    kernel.d[...], kernel.b[...] = jnp.asarray(d, jnp.float32), jnp.asarray(gains, jnp.float32)
    a, b = (np.asarray(p, np.float64) for p in example.shared_projections(24, 10, 5))
    expected = x @ (w + a @ np.diag(d) @ b @ np.diag(gains))
    assert np.allclose(jnp.asarray(x, jnp.float32) @ kernel, expected, atol=1e-4)
    assert np.allclose(x @ np.asarray(kernel.merge(), np.float64), expected, atol=1e-4)


@of("bitfit_and_vera")
def test_bitfit_trains_biases_alone_and_vera_two_vectors_a_kernel(example):
    models = example.main(steps=4, count=8)
    start = arrays_of(random_encoder(get_variant("PE-Mini-10-60"), 0))
    changed = {name for name, leaf in arrays_of(models["bitfit"].encoder).items() if not np.array_equal(leaf, start[name])}
    assert changed
    assert all(name.endswith(".bias") for name in changed)
    arrays = arrays_of(models["vera"].encoder)
    assert np.abs(arrays["stages.0.attn.qkv.kernel.b"]).max() > 0
    assert np.array_equal(arrays["stages.0.attn.qkv.kernel.base"], start["stages.0.attn.qkv.kernel"])
    assert {name for name in arrays if name.startswith("pool")} == {name for name in start if name.startswith("pool")}


@of("other_task")
def test_another_task_and_source_go_the_whole_way(example, tmp_path, monkeypatch):
    monkeypatch.setattr(example, "COUNT", {"train": 40, "test": 9})
    accuracy = example.main(tmp_path, epochs=1)
    assert 9 * accuracy == pytest.approx(round(9 * accuracy))
    config = json.loads((tmp_path / "shapes/config.json").read_text())
    assert config["tasks"] == ["colour"]
    counts = json.loads((tmp_path / "shapes_prepared/summary.json").read_text())["splits"]["test"]["labels"]["colour"]
    assert sum(counts) == 9


@of("attention_maps")
def test_attention_and_features_are_drawn_for_every_photo(example, tmp_path, monkeypatch, capsys):
    jaxface.save_weights(random_encoder(get_variant("PE-Mini-10-60"), 0), tmp_path / "mini.safetensors")
    photos = [str(tmp_path / f"{index}.jpg") for index in range(2)]
    for index, path in enumerate(photos):
        write_photo(Path(path), index, size=60)
    monkeypatch.setattr(sys, "argv", ["maps", str(tmp_path / "mini.safetensors"), *photos, "--out", str(tmp_path / "maps.png")])
    example.main()
    assert capsys.readouterr().out.strip() == str(tmp_path / "maps.png")
    picture = cv2.imread(str(tmp_path / "maps.png"))
    assert picture.shape[1] > 1.5 * picture.shape[0] > 600  # four columns, two rows
    assert picture[:, : picture.shape[1] // 4].std() > 20


def test_the_served_run_answers_as_the_predictor_does(trained_run, tmp_path):
    photo = tmp_path / "a.jpg"
    write_photo(photo, 3, size=48)
    command = [sys.executable, str(EXAMPLES / "serving.py"), str(trained_run), str(photo)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    address, answer = done.stdout.splitlines()
    assert json.loads(address.split(" ", 1)[1])["gender"] == ["male", "female"]
    ((face,),) = jaxface.Predictor(trained_run)([photo])
    assert str({task: face[task]["class"] for task in ("age", "gender", "emotion")}) in answer
