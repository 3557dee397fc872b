"""A run that is handed on: to another folder, another precision, a later version, with or without its base weights."""

import hashlib
import io
import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from trained_run import write_trained_run

from jaxface.adapters.places import linears
from jaxface.data.records import open_records
from jaxface.data.synthetic import DrawnSet
from jaxface.errors import UserError
from jaxface.exports import export_run, load_exported
from jaxface.models.encoder import normalize_images, random_encoder
from jaxface.models.variants import VARIANTS
from jaxface.prediction.adapter_server import AdapterServer
from jaxface.prediction.predictor import Predictor
from jaxface.runs.base import PLACES
from jaxface.runs.best import read_best, save_best
from jaxface.runs.config import DataOptions, EncoderOptions, HeadOptions
from jaxface.runs.data import sets_of_run
from jaxface.runs.folder import changed_options, read_config
from jaxface.runs.model import load_base, load_encoder, load_trained, make_parts
from jaxface.training.setup import Setup, check_tokens
from jaxface.weights import load_encoder as read_encoder
from jaxface.weights import save_weights
from small_models import KINDS
from tiny_encoder import TINY, tiny_encoder

IMAGES = normalize_images(jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)))


@jax.jit
def forward(model, images=IMAGES):
    return model(images)


def logits(trained):
    return {task: np.asarray(values, np.float32) for task, values in forward(trained.merged()).items()}


def assert_close(a, b, tolerance):
    for task in a:
        np.testing.assert_allclose(a[task], b[task], atol=tolerance * np.abs(b[task]).max(), err_msg=task)


def written(folder, method="dora", **encoder):
    """`write_trained_run` with other options of the encoder."""
    folder.mkdir(exist_ok=True)
    return write_trained_run(folder, method, encoder=EncoderOptions(**{"weights": str(folder / "base.safetensors"), **encoder}))


@pytest.fixture
def run(tmp_path):
    return written(tmp_path / "made")


def set_option(run, **encoder):
    path = run / "config.json"
    config = json.loads(path.read_text())
    config["encoder"] |= encoder
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(("trained_in", "opened_in"), [("bf16", "fp32"), ("fp32", "bf16")])
def test_a_run_opens_in_another_precision_than_it_was_trained_in(tmp_path, trained_in, opened_in):
    run = written(tmp_path, precision=trained_in)
    first = logits(load_trained(run))
    set_option(run, precision=opened_in)
    assert_close(logits(load_trained(run)), first, 5e-2)
    assert load_encoder(run).dtype == jnp.float32


@pytest.mark.parametrize("precision", ["bf16", "mixed"])
def test_what_trains_on_a_run_in_bfloat16_is_float32(precision, tmp_path):
    base = written(tmp_path / "base", precision=precision)
    run = written(tmp_path / "second", "full", precision=precision, weights=str(base))
    trained = load_trained(run)
    assert {leaf.dtype for leaf in make_parts(trained.config).trained.values()} == {jnp.dtype(jnp.float32)}


def test_a_run_in_mixed_precision_adds_its_branches_up_in_float32(tmp_path):
    run = written(tmp_path, precision="mixed")
    encoder = load_trained(run).model.encoder
    states = jax.eval_shape(lambda images: encoder.hidden_states(images), jnp.zeros((1, 32, 32, 3)))
    assert (states.dtype, encoder.dtype, encoder.stages[0].attn.qkv.kernel.base.dtype) == (jnp.float32, jnp.bfloat16, jnp.bfloat16)
    opened = load_encoder(run, dtype="bfloat16", residual="float32")
    assert (opened.dtype, opened.residual) == (jnp.bfloat16, jnp.float32)
    for wrong in ({"dtype": "int8"}, {"residual": "flaot32"}):
        with pytest.raises(UserError, match=r"(dtype int8|residual flaot32): expected float32, bfloat16 or float16"):
            load_encoder(run, **wrong)
    with pytest.raises(UserError, match="no remat 'some'; known: none, products, full"):
        load_encoder(run, remat="some")


def test_a_run_opens_where_its_base_weights_lie_now(run, tmp_path, monkeypatch):
    expected = logits(load_trained(run))
    shutil.move(run.parent, tmp_path / "moved")
    run = tmp_path / "moved/run"
    assert_close(logits(load_trained(run)), expected, 0)  # beside it, as when it was trained
    (tmp_path / "else").mkdir()
    shutil.move(tmp_path / "moved/base.safetensors", tmp_path / "else/weights.safetensors")
    with pytest.raises(UserError, match=r"base weights that are not at .*: --weights FILE \(or JAXFACE_WEIGHTS=FILE\) says where they are"):
        load_trained(run)
    assert_close(logits(load_trained(run, [tmp_path / "else/weights.safetensors"])), expected, 0)
    monkeypatch.setenv(PLACES, str(tmp_path / "else/weights.safetensors"))
    assert_close(logits(load_trained(run)), expected, 0)


def test_a_run_that_is_named_as_its_own_base_opens_on_the_one_it_has_and_one_that_is_its_own_is_refused(run, tmp_path):
    assert load_trained(run, (run,)).base == load_trained(run).base
    cycle = shutil.copytree(run, tmp_path / "cycle" / "run")
    config = json.loads((cycle / "config.json").read_text())
    config["encoder"]["weights"] = str(cycle)
    (cycle / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="a run that begins from itself"):
        load_trained(cycle)


def test_a_run_that_was_moved_has_its_faces_drawn_beside_it(run, tmp_path, monkeypatch):
    made = []

    def draw(out, **options):
        made.append(out.parent.parent)
        out.mkdir(parents=True, exist_ok=True)
        (out / "summary.json").write_text("{}")

    monkeypatch.setattr("jaxface.runs.data.prepare_synthetic", draw)
    config = read_config(run)
    sets_of_run(config, run)
    sets_of_run(config, shutil.copytree(run, tmp_path / "elsewhere/renamed"))
    assert made == [run.parent, tmp_path / "elsewhere"]


def test_other_weights_of_the_same_shape_are_refused(run):
    save_weights(jax.tree.map(lambda leaf: np.float32(1.01) * np.asarray(leaf), tiny_encoder()), run.parent / "base.safetensors")
    with pytest.raises(UserError, match="was trained on other base weights than those at"):
        load_trained(run)


def test_base_weights_in_another_layout_are_the_same_weights(run, tmp_path):
    expected = logits(load_trained(run))
    save_weights(read_encoder(run.parent / "base.safetensors"), tmp_path / "timm.safetensors", layout="timm")
    (run.parent / "base.safetensors").unlink()
    assert_close(logits(load_trained(run, [tmp_path / "timm.safetensors"])), expected, 0)


@pytest.mark.parametrize("file", ["trained.safetensors", "info.json"])
def test_a_changed_bit_in_the_best_model_is_noticed(run, file):
    path, expected = run / "best" / file, logits(load_trained(run))
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            found = logits(load_trained(run))
        except UserError:
            continue
        assert_close(found, expected, 0)
        assert whole[place : place + 1].isspace(), place  # between JSON values, at most


def test_a_best_model_with_nan_is_refused(run):
    best = read_best(run)
    name = next(iter(best.arrays))
    best.arrays[name].ravel()[0] = np.nan
    save_best(run, best.arrays, best.info)
    with pytest.raises(UserError, match=r"has NaN or infinity in it"):
        load_trained(run)


def test_a_run_of_the_first_format_opens(run):
    """Its `best/` had no digest, and a hash of the frozen arrays as they were computed with."""
    expected = logits(load_trained(run))
    for dtype in (jnp.float32, jnp.bfloat16):
        digest = hashlib.sha256()
        for name, leaf in sorted(make_parts(load_trained(run).config, None, dtype).frozen.items()):
            digest.update(f"{name} {leaf.dtype} {leaf.shape}".encode() + np.asarray(leaf).tobytes())
        info = {"base_sha256": digest.hexdigest(), "step": 3, "epoch": 1, "accuracy": 0.5, "base": "base.safetensors"}
        path = run / "best/trained.safetensors"
        save_file(load_file(path), path, {"info": json.dumps(info)})
        (run / "best/info.json").write_text(json.dumps(info))
        assert_close(logits(load_trained(run)), expected, 0)


def test_a_packed_run_needs_nothing_else_and_holds_a_base_that_is_a_run(tmp_path):
    base = written(tmp_path / "base")
    run = written(tmp_path / "second", weights=str(base))
    expected = logits(load_trained(run))
    export_run(run, "run", tmp_path / "packed")
    shutil.rmtree(tmp_path / "base")
    shutil.rmtree(tmp_path / "second")
    shutil.move(tmp_path / "packed", tmp_path / "elsewhere")
    assert_close(logits(load_trained(tmp_path / "elsewhere")), expected, 1e-6)


def test_a_changed_bit_in_any_file_of_an_export_is_noticed_when_it_opens(run, tmp_path):
    export_run(run, "onnx", tmp_path / "onnx")
    sample = np.load(tmp_path / "onnx/sample.npz")
    assert_close(
        load_exported(tmp_path / "onnx")(sample["images"]), {n.removeprefix("logits_"): sample[n] for n in sample if n != "images"}, 1e-5
    )
    for path in (tmp_path / "onnx" / name for name in ("model.onnx", "sample.npz", "manifest.json")):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :])
        with pytest.raises(UserError, match=r"damaged or changed"):
            load_exported(tmp_path / "onnx")
        path.write_bytes(whole)


def test_a_base_of_several_files_in_a_folder_trains_opens_and_is_packed_as_one(tmp_path):
    hub = tmp_path / "hub"
    hub.mkdir()
    save_weights(tiny_encoder(), tmp_path / "timm.safetensors", layout="timm")
    tensors = load_file(tmp_path / "timm.safetensors")
    places = {name: f"model-{1 + i % 2:05}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        save_file({name: array for name, array in tensors.items() if places[name] == file}, hub / file)
    (hub / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (hub / "config.json").write_text(json.dumps({"architecture": "vit_pe_core_base_patch16_224"}))
    with VARIANTS.temporarily():
        VARIANTS.add("tiny", TINY)
        run = written(tmp_path / "made", weights=str(hub))
        expected = logits(load_trained(run))
        save_weights(tiny_encoder(), tmp_path / "whole.safetensors")
        shutil.move(hub, tmp_path / "moved")
        assert_close(logits(load_trained(run, [tmp_path / "moved"])), expected, 0)
        assert_close(logits(load_trained(run, [tmp_path / "whole.safetensors"])), expected, 0)
        export_run(run, "run", tmp_path / "packed", [tmp_path / "moved"])
        shutil.rmtree(tmp_path / "moved")
        assert_close(logits(load_trained(tmp_path / "packed")), expected, 1e-6)


@pytest.mark.parametrize("kind", ["spatial", "core"])
def test_a_run_from_before_tokens_could_be_chosen_reads_the_mean_of_all_as_it_did(tmp_path, kind):
    save_weights(random_encoder(KINDS[kind].vision, 0), tmp_path / "kind.safetensors")
    run = written(tmp_path, "lp", weights=str(tmp_path / "kind.safetensors"))
    config = json.loads((run / "config.json").read_text())
    assert config["head"].pop("tokens") == "patches"
    (run / "config.json").write_text(json.dumps(config))
    model, images = load_trained(run).model, IMAGES[:, :32, :32]
    assert model.tokens == "all"
    images = jnp.tile(images, (1, 2, 2, 1))
    pooled = np.asarray(forward(model.encoder, images))
    expected = pooled.mean(1) if kind == "spatial" else pooled
    np.testing.assert_allclose(jax.jit(lambda model: model.features(images))(model), expected, atol=1e-5)
    now = replace(read_config(run), head=HeadOptions(dropout=0.0))
    assert not changed_options(run, now)
    parts = make_parts(now)
    if kind == "core":
        check_tokens(run, now, parts)
    else:
        with pytest.raises(UserError, match=r"was trained with --head\.tokens all so far"):
            check_tokens(run, now, parts)
    with pytest.raises(UserError, match=r"head\.tokens (class|all): the heads' encoder has a pool|tokens all so far"):
        check_tokens(run, replace(now, head=HeadOptions(tokens="class")), parts)


def test_a_small_update_in_bfloat16_keeps_its_effect_when_the_run_is_opened(tmp_path):
    """Base weights on bfloat16's grid, and an update of a thousandth of them, which that grid has no room for."""
    run = written(tmp_path, "lora", precision="bf16")
    save_weights(tiny_encoder(), tmp_path / "base.safetensors", dtype=ml_dtypes.bfloat16)
    best, config = read_best(run), read_config(run)
    base = load_base(config)
    frozen = make_parts(config, base, jnp.float32).frozen
    for name, b in best.arrays.items():
        if name.endswith(".kernel.b"):
            w, a = np.asarray(frozen[name.removesuffix("b") + "base"]), best.arrays[name.removesuffix("b") + "a"]
            best.arrays[name] = b * 1e-3 * np.linalg.norm(w) / np.linalg.norm(a @ b)
    save_best(run, best.arrays, best.info | {"base_sha256": base.fingerprint})
    features = {}
    for name, encoder in {"merged": load_encoder(run), "unmerged": load_trained(run, dtype=jnp.float32).model.encoder}.items():
        features[name] = np.asarray(forward(encoder))
    before = np.asarray(forward(load_trained(run, dtype=jnp.float32).before().encoder))
    effect = features["unmerged"] - before
    assert 0 < np.abs(effect).max() < 0.1 * np.abs(before).max()
    kept = np.sum((features["merged"] - before) * effect) / np.sum(effect * effect)
    assert 0.98 < kept < 1.02
    assert all(not hasattr(linear.kernel, "merge") for _, linear in linears(load_encoder(run)))


def test_a_run_sees_faces_as_its_encoders_family_does_from_training_to_prediction(tmp_path):
    encoder = tiny_encoder()
    encoder.config = replace(TINY, framing="bicubic-middle")
    save_weights(encoder, tmp_path / "theirs.safetensors")
    data = DataOptions(drawn=DrawnSet("paint", count=24, test_count=12, size=24), augment=False)
    run = write_trained_run(tmp_path, "lora", encoder=EncoderOptions(weights=str(tmp_path / "theirs.safetensors")), data=data)
    photo = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    seen = np.asarray(Image.fromarray(photo).resize((16, 16), Image.Resampling.BICUBIC))
    predictor = Predictor(run)
    assert np.array_equal(predictor.find(photo).crops[0], seen)
    assert predictor.about()["framing"] == "bicubic-middle"
    assert np.array_equal(AdapterServer(tmp_path, options=predictor.options).find(photo).crops[0], seen)
    assert load_trained(run).framing == "bicubic-middle"
    config = read_config(run)
    images = Setup(replace(config, name="again")).images
    for batch, split in ((next(iter(images.evaluation("test"))), "test"), (next(images.train(0)), "train")):
        records = open_records(sets_of_run(config, run)[0], split)
        by_name = {record["id"]: record["image"] for record in map(records.__getitem__, range(len(records)))}
        for name, got in zip(batch["id"], batch["image"], strict=True):
            if name:
                face = Image.open(io.BytesIO(by_name[name])).resize((16, 16), Image.Resampling.BICUBIC)
                assert np.array_equal(got, face), split
    info = json.loads((run / "best" / "info.json").read_text())
    save_best(run, read_best(run).arrays, {key: value for key, value in info.items() if key != "framing"})
    assert load_trained(run).framing == "bilinear-squash"  # what a run was trained with that does not say
