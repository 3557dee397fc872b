"""Engines: other libraries that compute a run's model, on files that belong to this very model and say how far they agree with it."""

import json
import shutil
import sys

import numpy as np
import pytest
from trained_run import write_trained_run

from jaxface.data.synthetic import DrawnSet
from jaxface.digests import file_digest
from jaxface.errors import UserError
from jaxface.exports import export_run, onnx_int8, read_manifest
from jaxface.exports.onnx import build, merged_float32
from jaxface.exports.onnx_int8 import rounding_of
from jaxface.prediction.engines import ENGINES, Engine, Place
from jaxface.prediction.predictor import Predictor
from jaxface.runs.best import model_digest
from jaxface.runs.config import DataOptions
from jaxface.runs.evaluate_run import evaluate_run
from jaxface.runs.model import load_trained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with both of its engine files."""
    folder = tmp_path_factory.mktemp("engines")
    run = write_trained_run(folder, data=DataOptions(drawn=DrawnSet("paint", count=60, test_count=12, size=16)))
    for name in ("onnx", "onnx-int8"):
        export_run(run, name, run / "export" / name)
    return run


@pytest.fixture(scope="module")
def crops():
    return list(np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8))


def logits(run, engine, crops):
    predictor = Predictor(run, engine=engine, batch_size=8)
    found = predictor.classify(crops)
    return {task.name: np.asarray(found[task.name]).reshape(-1, task.num_classes)[: len(crops)] for task in predictor.tasks}


@pytest.mark.parametrize(("engine", "tolerance"), [("onnxruntime", 1e-5), ("onnxruntime-int8", 0.1), ("openvino-int8", 0.1)])
def test_an_engine_says_what_jax_says(run, crops, engine, tolerance):
    found, expected = logits(run, engine, crops), logits(run, "jax", crops)
    for task, values in expected.items():
        assert np.abs(found[task] - values).max() <= tolerance * np.abs(values).max()
        assert (engine == "onnxruntime") == np.allclose(found[task], values, atol=1e-4)  # the eight bits are really there


@pytest.mark.parametrize("engine", ["onnxruntime", "onnxruntime-int8", "openvino-int8"])
def test_a_face_has_the_same_answer_alone_and_in_a_batch(run, crops, engine):
    together = logits(run, engine, crops)
    for index, crop in enumerate(crops):
        for task, values in logits(run, engine, [crop]).items():
            np.testing.assert_allclose(values[0], together[task][index], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["onnx", "onnx-int8"])
def test_the_file_alone_gives_the_sample_logits_of_its_manifest(run, name):
    import onnx
    import onnxruntime

    folder, manifest = run / "export" / name, read_manifest(run / "export" / name)
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    with np.load(folder / manifest["check"]["sample"]) as sample:
        for output, found in zip(session.get_outputs(), session.run(None, {"images": sample["images"]}), strict=True):
            expected = sample[f"logits_{output.name}"]
            assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_openvino_tells_nobody_that_it_is_used(run, crops):
    logits(run, "openvino-int8", crops)
    assert sys.modules["openvino_telemetry"] is None
    assert sys.modules["openvino.tools.ovc.telemetry_utils"].tm.__name__.endswith("stub")


def test_the_manifest_of_eight_bits_says_how_far_they_agree(run):
    manifest = read_manifest(run / "export" / "onnx-int8")
    assert manifest["precision"] == "int8"
    assert manifest["products"]["int8"] > 0
    images = manifest["agreement"]["images"]
    assert ENGINES.get("onnxruntime-int8").loss(Place(run, model_digest(run))) >= 1 / images
    for said in manifest["agreement"]["tasks"].values():
        assert 0.5 <= said["same_class"] <= 1
        assert len(said["accuracy"]) == len(said["calibration_error"]) == 2


def test_auto_takes_the_first_that_is_there_and_loses_little_enough(run, trained_run, capsys):
    assert Predictor(trained_run, engine="auto").engine == "jax"
    assert "not onnxruntime-int8: no " in capsys.readouterr().err
    with ENGINES.temporarily():
        entries = dict(ENGINES.items())
        ENGINES.add("openvino-int8", entries["openvino-int8"]._replace(where=("gpu",)))
        ENGINES.add("onnxruntime-int8", entries["onnxruntime-int8"]._replace(loss=lambda place: 0.02))
        for name in ("onnxruntime", "jax"):
            ENGINES.add(name, entries[name])
        assert Predictor(run, engine="auto", most_loss=0.05).engine == "onnxruntime-int8"
        assert Predictor(run, engine="auto", most_loss=0.01).engine == "onnxruntime"


class Constant:
    image_size, multiple, compiles = 16, 1, False

    def __call__(self, images):
        return {task: np.eye(count)[[1] * len(images)] for task, count in (("age", 9), ("gender", 2), ("emotion", 7))}


def test_an_engine_of_ones_own_is_one_entry(run, crops):
    with ENGINES.temporarily():
        ENGINES.add("constant", Engine(lambda place: Constant(), lambda place: 1.0))
        assert [face["gender"]["class"] for (face,) in Predictor(run, engine="constant")(crops)] == ["female"] * 5


def test_a_file_of_another_model_and_one_that_is_not_there_are_refused(run, trained_run, tmp_path):
    with pytest.raises(UserError, match=r"no .*onnx-int8: .*export .* --to onnx --precision int8. makes it"):
        Predictor(trained_run, engine="onnxruntime-int8")
    other = write_trained_run(tmp_path, seed=1)
    shutil.copytree(run / "export", other / "export")
    with pytest.raises(UserError, match=r"of another model than .* makes it anew"):
        Predictor(other, engine="onnxruntime")
    damaged = other / "export" / "onnx" / "model.onnx"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="missing, damaged or changed"):
        Predictor(other, engine="onnxruntime")


def without(*path):
    """A change of an export's manifest: an entry goes."""

    def change(folder, manifest):
        entry = manifest
        for key in path[:-1]:
            entry = entry[key]
        del entry[path[-1]]

    return change


def not_a_model(folder, manifest):
    (folder / "model.onnx").write_bytes(b"no model")


def of_other_tasks(folder, manifest):
    with np.load(folder / "sample.npz") as sample:
        arrays = {**sample, "logits_age": sample["logits_age"][:, :3]}
    np.savez(folder / "sample.npz", **arrays)


def in_floats(folder, manifest):
    with np.load(folder / "sample.npz") as sample:
        arrays = {**sample, "images": sample["images"].astype(np.float32)}
    np.savez(folder / "sample.npz", **arrays)


def elsewhere(folder, manifest):
    manifest["check"]["sample"] = "../onnx/sample.npz"


def sure_of_too_much(folder, manifest):
    manifest["agreement"]["tasks"]["age"]["same_class"] = 7.0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without("input"), "cannot be computed by onnxruntime"),
        (without("check", "sample"), "cannot be computed by onnxruntime"),
        (without("agreement"), "does not say how many faces keep their class"),
        (sure_of_too_much, "does not say how many faces keep their class"),
        (elsewhere, "has no hash of .*sample.npz"),
        (not_a_model, "cannot be computed by onnxruntime"),
        (of_other_tasks, "not of this run's images and tasks"),
        (in_floats, "cannot be computed by onnxruntime"),
    ],
)
def test_an_export_that_somebody_rewrote_is_refused_in_one_line(run, tmp_path, change, reason):
    copy, name = tmp_path / "run", "onnx-int8"
    shutil.copytree(run, copy)
    folder = copy / "export" / name
    manifest = json.loads((folder / "manifest.json").read_text())
    change(folder, manifest)
    manifest["files"] = {name: file_digest(folder / name) for name in manifest["files"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "digests.json").unlink()
    engine, place = ENGINES.get("onnxruntime-int8"), Place(copy, model_digest(copy))
    with pytest.raises(UserError, match=reason) as refused:
        _ = engine.loss(place), engine.open(place)
    assert "\n" not in str(refused.value)


def test_evaluation_by_another_engine_has_its_answers_and_says_so(run, tmp_path):
    answers = evaluate_run(run, split="validation", out=tmp_path, engine=("constant", Constant()))[0]
    assert (answers.predicted("age") == 1).all()
    assert json.loads((tmp_path / "evaluation.json").read_text())["about"]["engine"] == "constant"
    with pytest.raises(UserError, match="engine constant gives no features"):
        evaluate_run(run, out=tmp_path, features=True, engine=("constant", Constant()))


def test_a_rounding_loses_little_and_shares_the_range_of_an_outlier_channel():
    random = np.random.default_rng(0)
    rows, kernel = random.normal(size=(200, 64)).astype(np.float32), random.normal(size=(64, 32)).astype(np.float32)
    rows[:, 5] *= 100  # as transformers have channels that are far larger than others
    kernel[5] /= 100
    power = np.square(rows @ kernel).mean()
    alone, shared = (rounding_of(rows, kernel, np.abs(rows).max(0), shareable) for shareable in (False, True))
    assert np.sqrt(shared.error / power) < 0.02 < np.sqrt(alone.error / power)
    rounded = np.clip(np.rint(rows / shared.shared / shared.scale), -128, 127) * shared.scale @ (kernel * shared.shared[:, None])
    assert np.sqrt(np.square(rounded - rows @ kernel).mean() / power) < 0.02


def test_products_that_move_the_answers_most_for_their_size_stay_in_float32(run, tmp_path, monkeypatch):
    said = []
    for name, change in (("all", 1.0), ("half", 0.0)):
        monkeypatch.setattr(onnx_int8, "CHANGE", change)
        said.append(export_run(run, "onnx-int8", tmp_path / name))
    (all_rounded, half), (most, least) = ([one["products"] for one in said], [one["agreement"]["tasks"]["age"]["change"] for one in said])
    assert half["int8"] == -(-all_rounded["int8"] // 2)
    assert least < most * 0.8  # half of the products, but more than half of the squares


def test_the_rounding_of_each_product_alone_is_what_it_does_to_the_answers(run):
    trained = load_trained(run)
    model, classes = merged_float32(trained)
    images = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)

    def build_graph(graph):
        return build(model, 16, classes, graph)

    roundings = onnx_int8.roundings_of(build_graph, images, 1)
    effects, sizes = onnx_int8.effects_of(build_graph, roundings, images)
    index = int(effects.sum(1).argmax())
    coarse = [one and one._replace(scale=one.scale * (8 if number == index else 1)) for number, one in enumerate(roundings)]
    others = np.arange(len(sizes)) != index
    again = onnx_int8.effects_of(build_graph, coarse, images)[0]
    assert (effects > 0).all()
    np.testing.assert_allclose(again[others], effects[others], rtol=1e-3)
    assert (again[index] > 4 * effects[index]).all()
