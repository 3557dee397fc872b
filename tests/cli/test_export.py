"""`python -m jaxface.export`: what is written gives the model's logits to whoever has only the originals."""

import dataclasses
import hashlib
import json
import sys

import numpy as np
import pytest
from trained_run import write_trained_run

from jaxface.errors import UserError, run_command
from jaxface.export import main
from jaxface.exports import export_run, exporter
from jaxface.runs.config import EncoderOptions


def sample(folder):
    with np.load(folder / "sample.npz") as arrays:
        return arrays["images"], {name.removeprefix("logits_"): arrays[name] for name in arrays.files if name != "images"}


def assert_close(found, expected, ranks=()):
    for task, logits in expected.items():
        if task in ranks:  # logarithms of differences of two shares: their digits are in the shares
            assert np.abs(shares(found[task]) - shares(logits)).max() <= 1e-5, task
        else:
            assert np.abs(found[task] - logits).max() <= 1e-5 * np.abs(logits).max(), task


def shares(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def specific(tmp_path_factory):
    """An MTLoRA run with ordinal ages: features and updates per task, and a head of ranks."""
    return write_trained_run(tmp_path_factory.mktemp("specific"), "mtlora", losses={"age": "coral"})


@pytest.mark.parametrize("kind", ["dora", "mtlora"])
def test_stablehlo_runs_with_jax_alone(kind, trained_run, specific, tmp_path):
    import jax

    about = export_run(trained_run if kind == "dora" else specific, "stablehlo", tmp_path)
    images, expected = sample(tmp_path)
    exported = jax.export.deserialize(bytearray((tmp_path / "model.jax").read_bytes()))
    assert exported.platforms == ("cpu", "cuda")
    ranks = ["age"] if kind == "mtlora" else []
    found = {task: np.asarray(v) for task, v in exported.call(images[:2]).items()}
    assert_close(found, {task: v[:2] for task, v in expected.items()}, ranks)
    assert about["classes"]["gender"] == ["male", "female"]


@pytest.mark.parametrize("kind", ["dora", "mtlora"])
def test_onnx_runs_in_onnxruntime_and_in_the_reference_evaluator(kind, trained_run, specific, tmp_path):
    import onnx
    import onnxruntime
    from onnx.reference import ReferenceEvaluator

    about = export_run(trained_run if kind == "dora" else specific, "onnx", tmp_path)
    assert about["check"]["checked_by"] == "ONNX Runtime"
    images, expected = sample(tmp_path)
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    names = [output.name for output in session.get_outputs()]
    ranks = ["age"] if kind == "mtlora" else []
    assert_close(dict(zip(names, session.run(None, {"images": images}), strict=True)), expected, ranks)
    reference = ReferenceEvaluator(str(tmp_path / "model.onnx"))
    found = dict(zip(names, reference.run(None, {"images": images[:1]}), strict=True))
    assert_close(found, {task: v[:1] for task, v in expected.items()}, ranks)


def torch_logits(heads, features):
    """The heads as the manifest describes them, in torch."""
    import torch
    from torch.nn import functional

    logits = {}
    for task in ("age", "gender", "emotion"):
        part = {name.removeprefix(f"{task}."): torch.from_numpy(value) for name, value in heads.items() if name.startswith(f"{task}.")}
        norm = (part["norm.running_mean"], part["norm.running_var"], part["norm.weight"], part["norm.bias"])
        x = functional.batch_norm(features, *norm, eps=1e-5)
        x = functional.gelu(functional.linear(x, part["hidden.weight"], part["hidden.bias"]))
        logits[task] = functional.linear(x, part["out.weight"], part["out.bias"]).numpy()
    return logits


def torch_features(model, images):
    import torch

    with torch.inference_mode():
        return model(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1)


def timm_model(path, size=16):
    import torch
    from safetensors.numpy import load_file

    from jaxface.originals.reference import timm_vision
    from tiny_encoder import TINY

    model = timm_vision(dataclasses.replace(TINY, image_size=size)).eval()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in load_file(path).items()})
    return model


def test_merged_weights_and_heads_give_the_same_logits_in_timm(trained_run, tmp_path):
    from safetensors.numpy import load_file

    export_run(trained_run, "safetensors", tmp_path)
    images, expected = sample(tmp_path)
    features = torch_features(timm_model(tmp_path / "encoder.timm.safetensors"), images)
    assert_close(torch_logits(load_file(tmp_path / "heads.safetensors"), features), expected)


def test_the_adapter_folder_gives_the_same_logits_in_peft(trained_run, tmp_path):
    from safetensors.numpy import load_file

    from jaxface.originals.reference import import_torch
    from weights_convert.checkpoint import convert

    export_run(trained_run, "peft", tmp_path)
    _, peft = import_torch("peft")
    convert(trained_run.parent / "base.safetensors", tmp_path / "base.safetensors", layout="timm")
    images, expected = sample(tmp_path)
    model = peft.PeftModel.from_pretrained(timm_model(tmp_path / "base.safetensors"), str(tmp_path))
    assert_close(torch_logits(load_file(tmp_path / "heads.safetensors"), torch_features(model.eval(), images)), expected)


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """A run on images larger than those that the encoder's positions are for."""
    from trained_run import write_trained_run

    from jaxface.runs.config import EncoderOptions

    folder = tmp_path_factory.mktemp("larger")
    return write_trained_run(folder, encoder=EncoderOptions(weights=str(folder / "base.safetensors"), image_size=24))


@pytest.mark.parametrize("name", ["safetensors", "peft"])
def test_at_another_image_size_timm_has_the_runs_positions(larger, tmp_path, name):
    from safetensors.numpy import load_file

    from jaxface.originals.reference import import_torch

    about = export_run(larger, name, tmp_path)
    assert about["timm"] == {"img_size": 24, "ref_feat_shape": [6, 6]}
    if name == "peft":
        _, peft = import_torch("peft")
        model = peft.PeftModel.from_pretrained(timm_model(tmp_path / about["base"], 24), str(tmp_path)).eval()
    else:
        model = timm_model(tmp_path / "encoder.timm.safetensors", 24)
    images, expected = sample(tmp_path)
    assert images.shape[1:3] == (24, 24)
    assert_close(torch_logits(load_file(tmp_path / "heads.safetensors"), torch_features(model, images)), expected)


def spoilt(name, file, tensor, change):
    """The exporter of that name, which changes one tensor of a file after it was read back."""
    from safetensors.numpy import load_file, save_file

    export = exporter.EXPORTERS.get(name)

    def write(trained, folder):
        result = export(trained, folder)
        tensors = load_file(folder / file)
        save_file({**tensors, tensor: change(tensors[tensor])}, folder / file)
        return result

    return write


@pytest.mark.parametrize(
    ("name", "file", "tensor"),
    [
        ("safetensors", "encoder.timm.safetensors", "blocks.1.mlp.fc1.weight"),
        ("safetensors", "heads.safetensors", "age.hidden.weight"),
        ("peft", "adapter_model.safetensors", None),
    ],
)
@pytest.mark.parametrize("factor", [1.01, np.nan])
def test_who_reads_an_export_notices_one_wrong_kernel(trained_run, tmp_path, name, file, tensor, factor):
    from safetensors.numpy import load_file

    from jaxface.originals.reference import timm_vision

    if tensor is None:
        export_run(trained_run, name, tmp_path)
        tensor = next(key for key in load_file(tmp_path / file) if "lora_B" in key)
    with exporter.EXPORTERS.temporarily():
        exporter.EXPORTERS.add(name, spoilt(name, file, tensor, lambda kernel: kernel * np.float32(factor)))
        with pytest.raises(UserError, match=r"read by (timm|PEFT).* differ by"):
            export_run(trained_run, name, tmp_path, build_timm=timm_vision)
    assert not (tmp_path / "manifest.json").exists()


def test_without_timm_the_manifest_says_who_checked(trained_run, tmp_path):
    def missing(config):
        raise UserError("the original takes timm")

    check = export_run(trained_run, "peft", tmp_path, build_timm=missing)["check"]
    assert check["checked_by"] == "jaxface (the original takes timm)"
    assert check["tolerance"] == exporter.TOLERANCE


def test_the_manifest_says_what_was_written(trained_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["export", str(trained_run), "--to", "safetensors", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 0
    about = json.loads((tmp_path / "out" / "manifest.json").read_text())
    for name, digest in about["files"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    assert about["input"]["images"]["shape"] == ["batch", 16, 16, 3]
    assert about["check"]["largest_relative_difference"] < 1e-5
    assert about["check"]["checked_by"].startswith("timm")
    assert "agree to" in capsys.readouterr().out


def test_an_export_that_gives_other_logits_is_not_called_done(trained_run, tmp_path):
    def wrong(trained, folder):
        return lambda images: {task: v + 1e-3 for task, v in exporter.model_answer(trained.merged())(images).items()}, {}

    with exporter.EXPORTERS.temporarily():
        exporter.EXPORTERS.add("wrong", wrong)
        with pytest.raises(UserError, match="logits differ by"):
            export_run(trained_run, "wrong", tmp_path)
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize("name", ["safetensors", "peft"])
def test_updates_per_task_have_no_place_in_one_kernel(specific, tmp_path, name):
    with pytest.raises(UserError, match=r"update per task|has no place|some DoRA"):
        export_run(specific, name, tmp_path)


def test_a_run_without_a_pool_is_checked_by_timm_and_peft_with_its_choice_of_tokens(tmp_path):
    from trained_run import write_trained_run

    from jaxface.models.encoder import random_encoder
    from jaxface.originals.reference import timm_vision
    from jaxface.runs.config import EncoderOptions, HeadOptions
    from jaxface.weights import save_weights
    from small_models import KINDS

    save_weights(random_encoder(KINDS["spatial"].vision, 0), tmp_path / "spatial.safetensors")
    encoder = EncoderOptions(weights=str(tmp_path / "spatial.safetensors"))
    run = write_trained_run(tmp_path, "lora", encoder=encoder, head=HeadOptions(dropout=0.0, tokens="class"))
    for name in ("safetensors", "peft"):
        about = export_run(run, name, tmp_path / name, build_timm=timm_vision)
        assert about["check"]["checked_by"].startswith(("timm", "PEFT"))
        assert about["heads"].endswith("its class token, the first")


def test_a_pool_per_task_has_a_place_in_onnx_and_none_in_timm(tmp_path):
    from trained_run import write_trained_run

    run = write_trained_run(tmp_path, "ap_per_task")
    for name in ("safetensors", "peft"):
        with pytest.raises(UserError, match="a pool per task"):
            export_run(run, name, tmp_path / name)
    check = export_run(run, "onnx", tmp_path / "onnx")["check"]
    assert check["largest_relative_difference"] < 1e-5
    assert check["checked_by"] == "ONNX Runtime"


@pytest.mark.parametrize(
    ("words", "says"), [(["RUN", "--to", "coreml"], "known: "), (["nowhere", "--to", "onnx"], "nowhere"), (["RUN"], "export: --to")]
)
def test_wrong_input_is_one_line_and_exit_status_2(trained_run, monkeypatch, capsys, words, says):
    monkeypatch.setattr(sys, "argv", ["export", *(str(trained_run) if word == "RUN" else word for word in words)])
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    printed = capsys.readouterr().err.strip()
    assert ended.value.code == 2
    assert printed.startswith("error: ")
    assert says in printed
    assert "\n" not in printed


def test_an_adapter_of_rounded_kernels_is_not_exported_as_one_of_the_weights_as_they_are(tmp_path):
    run = write_trained_run(tmp_path, "lora", encoder=EncoderOptions(str(tmp_path / "base.safetensors"), base="int8"))
    with pytest.raises(UserError, match="its frozen kernels are int8"):
        export_run(run, "peft", tmp_path / "out")
    assert not (tmp_path / "out/manifest.json").exists()
