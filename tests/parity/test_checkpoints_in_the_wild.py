"""Checkpoints as other libraries' own savers write them, and models of other families that have tensors of the same names."""

import argparse
import json
import warnings
from functools import cache

import numpy as np
import pytest

import jaxface
from jaxface.errors import UserError
from jaxface.models.tree import arrays_of
from jaxface.originals.reference import build_original, import_torch
from jaxface.weights import load_encoder
from small_models import KINDS, random_tensors
from weights_convert.checkpoint import convert, layout_tensors, read_checkpoint, write_checkpoint
from weights_convert.names import of_timm
from weights_convert.towers import Heads, Towers

torch, timm, safetensors_torch = import_torch("timm", "safetensors.torch")
KIND = "core"
TOWERS = Towers(KINDS[KIND].vision)
HEADS = Heads(4, 8)


def state(seed=0, layout="timm", kind=KIND):
    towers = Towers(KINDS[kind].vision)
    tensors = layout_tensors(layout, towers, random_tensors(towers, seed))
    return {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}


@cache
def expected(seed=0):
    return random_tensors(TOWERS, seed)


def same(found, seed=0):
    return found.keys() == expected(seed).keys() and all((found[name] == array).all() for name, array in expected(seed).items())


def saved(path, value):
    torch.save(value, path)
    return path


def read(path, **options):
    return read_checkpoint(path, heads=HEADS, **options)


def sharded(folder, tensors, count=3):
    """As `save_pretrained` of transformers and huggingface_hub shard a state dict."""
    names = sorted(tensors)
    places = {name: f"model-{1 + i % count:05}-of-{count:05}.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(places.values())):
        safetensors_torch.save_file({n: tensors[n].contiguous() for n in names if places[n] == file}, folder / file, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.module.", "timm_model.", "model.", "visual.trunk.", "model.visual.trunk.", "a.b."]
)
def test_what_wrappers_put_before_every_name_is_taken_off(tmp_path, prefix):
    assert same(read(saved(tmp_path / "a.pt", {prefix + name: tensor for name, tensor in state().items()})).tensors)
    if prefix == "module.":
        odd = {("" if "norm" in name else prefix) + name: tensor for name, tensor in state().items()}
        with pytest.raises(UserError, match=r"no layout|missing|too many|cannot tell"):
            read(saved(tmp_path / "b.pt", odd))


def test_shards_and_folders_of_hugging_face_are_read_whole_or_not_at_all(tmp_path):
    tensors = {f"timm_model.{name}": tensor for name, tensor in state().items()}
    index = sharded(tmp_path, tensors)
    assert same(read(index).tensors)
    assert same(read(tmp_path).tensors)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_pe_core_large_patch14_336", "num_classes": 0}))
    assert arrays_of(load_encoder(tmp_path, heads=HEADS)).keys() == arrays_of(jaxface.load_encoder(index, heads=HEADS)).keys()
    for text, message in (
        (
            '{"architecture": "resnet50"}',
            "the model is 'resnet50', of none of the kinds that are known",
        ),
        ('{"architecture": ', "no JSON"),
        (
            '{"architecture": "vit_pe_core_tiny_patch16_384", "model_args": {"img_size": 448, "ref_feat_shape": [24, 24]}}',
            "it says ref_feat_shape of its model, and what that changes is not known here",
        ),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=message):
            read(tmp_path)
    (tmp_path / "config.json").unlink()
    good = json.loads(index.read_text())["weight_map"]
    first = next(iter(good))
    for places, message in (
        (good | {first: "../../a.safetensors"}, "expected a file beside the index"),
        (good | {first: "gone.safetensors"}, r"the shard gone\.safetensors is missing"),
        ({name: file for name, file in good.items() if name != first}, "against the index"),
        (good | {"more": good[first]}, "more is not in .* against the index"),
        ({}, "has no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": places}))
        with pytest.raises(UserError, match=message):
            read(tmp_path)
    with pytest.raises(UserError, match=r"a folder with none of model\.safetensors"):
        read(tmp_path / "..")


def training_checkpoint(**more):
    """What timm's CheckpointSaver puts into a file."""
    return {
        "epoch": 3,
        "arch": "vit_pe_core_base_patch16_224",
        "state_dict": state(0),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "version": 2,
        "args": argparse.Namespace(lr=1e-3, name="x", mean=(0.5, 0.5)),
        "metric": np.float64(77.5),
        **more,
    }


def test_of_a_training_checkpoint_the_average_is_taken_if_it_is_there_and_it_is_said(tmp_path, capsys):
    path = saved(tmp_path / "a.pth.tar", training_checkpoint(state_dict_ema={f"module.{n}": t for n, t in state(1).items()}))
    assert same(read(path).tensors, 1)
    assert "state_dict_ema is taken, not state_dict" in read(path).file.taken
    assert same(read(path, averaged=True).tensors, 1)
    assert same(read(path, averaged=False).tensors, 0)
    with pytest.warns(UserWarning, match="state_dict_ema is taken, not state_dict; averaged=False or True says which"):
        load_encoder(path, heads=HEADS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_encoder(path, heads=HEADS, averaged=False)
    plain = saved(tmp_path / "b.pt", training_checkpoint())
    assert same(read(plain).tensors, 0)
    with pytest.raises(UserError, match="not an averaged one"):
        read(plain, averaged=True)
    alone = saved(tmp_path / "c.pt", {"state_dict_ema": state(1), "epoch": 1})
    assert same(read(alone).tensors, 1)
    with pytest.raises(UserError, match="not one that is not averaged"):
        read(alone, averaged=False)
    with pytest.raises(UserError, match=r"holds several state dicts \(state_dict, model\)"):
        read(saved(tmp_path / "d.pt", {"model": state(0), "state_dict": state(1)}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_from_before_torch_1_6_is_read_as_its_pickles_and_storages_stand(tmp_path, dtype):
    value = training_checkpoint(state_dict={name: tensor.to(dtype) for name, tensor in state().items()})
    torch.save(value, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    found = read(tmp_path / "old.pt").tensors
    assert all(
        (found[name].astype(np.float32) == torch.tensor(array).to(dtype).float().numpy()).all() for name, array in expected().items()
    )
    content = (tmp_path / "old.pt").read_bytes()
    for cut in (15, 400, len(content) // 2, len(content) - 3):
        (tmp_path / "cut.pt").write_bytes(content[:cut])
        with pytest.raises(UserError, match=r"broken|refused: its pickle asks for c\w*\.,"):
            read(tmp_path / "cut.pt")


def test_torchs_own_average_is_read_and_what_holds_no_state_dict_is_said(tmp_path):
    average = torch.optim.swa_utils.AveragedModel(build_original("timm", TOWERS, random_tensors(TOWERS)).modules[0]).state_dict()
    path = saved(tmp_path / "a.pt", average)
    assert same(read(path).tensors)
    assert "AveragedModel" in read(path).file.taken
    with pytest.raises(UserError, match="holds averaged weights alone"):
        read(path, averaged=False)
    for value, message in (
        ({"student": state(), "teacher": state()}, "holds student, teacher, and no tensor of torch's under its own name"),
        (
            {f"model.{n}": t for n, t in state().items()} | {"loss.w": torch.ones(2)},
            r"beside the encoder \(model\.\.\.\.\) stand .*: loss\.w",
        ),
        (torch.ones(2), "holds a tensor, expected a dictionary"),
    ):
        with pytest.raises(UserError, match=message):
            read(saved(tmp_path / "b.pt", value))
    shadow = saved(tmp_path / "c.pt", {"model": state(), "ema": {"shadow_params": list(state(1).values())}})
    assert same(read(shadow).tensors)
    assert "ema beside it is no dictionary of tensors" in read(shadow).file.taken


def test_a_trained_classifier_is_refused_dropped_or_kept_as_is_asked(tmp_path):
    tensors = state()
    tensors["head.weight"] = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    tensors["head.bias"] = torch.arange(5.0)
    path = saved(tmp_path / "a.pt", tensors)
    with pytest.raises(
        UserError, match=r"head is a trained classifier, not the projection .*: say classifier: drop leaves it out, keep takes"
    ):
        read(path)
    assert read(path, classifier="drop").towers.vision.output is None
    kept = load_encoder(path, heads=HEADS, classifier="keep")
    assert np.allclose(kept.projection.bias[...], np.arange(5))
    images = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    dropped = load_encoder(path, heads=HEADS, classifier="drop")
    assert np.allclose(kept(images), dropped(images) @ tensors["head.weight"].numpy().T + np.arange(5), atol=1e-4)
    for layout in ("jaxface", "timm"):
        jaxface.save_weights(kept, tmp_path / f"{layout}.safetensors", layout=layout)
        again = load_encoder(tmp_path / f"{layout}.safetensors", classifier="keep")
        assert (again(images) == kept(images)).all()
    with pytest.raises(UserError, match="layout meta has no place for the bias of a classifier"):
        jaxface.save_weights(kept, tmp_path / "no.pt", layout="meta")
    spatial = state(kind="spatial") | {"head.weight": torch.zeros(5, 64), "head.bias": torch.zeros(5)}
    for choice, message in (("refuse", "the tower has no feature to project"), ("keep", "drop leaves it out$")):
        with pytest.raises(UserError, match=message):
            read_checkpoint(saved(tmp_path / "s.pt", spatial), heads=HEADS, classifier=choice)
    assert read_checkpoint(tmp_path / "s.pt", heads=HEADS, classifier="drop").towers.vision.output is None


def test_metadata_of_others_is_passed_over_and_whole_numbers_are_no_weights(tmp_path):
    for config in ("{}", "not json", '{"hidden_size": 3}', "[" * 100_000, "null"):
        safetensors_torch.save_file({n: t.contiguous() for n, t in state().items()}, tmp_path / "a.safetensors", {"config": config})
        assert same(read(tmp_path / "a.safetensors").tensors)
    tensors = {**state(), "pos_embed": state()["pos_embed"].int()}
    with pytest.raises(UserError, match=r"1 tensor of whole numbers, which no weights are: pos_embed \(int32\)"):
        read(saved(tmp_path / "a.pt", tensors))


FAMILY = "CLIP-.*, OpenCLIP-.* have the same tensors and differ in activation: say which"
SIZE = r"its positions are for images of 224 pixels, not 384: .* if that was \[14, 14\], which scales nothing, give its number of heads"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        *(
            (f"vit_{name}", {"num_classes": 0}, FAMILY)
            for name in ("base_patch32_clip_224", "base_patch16_clip_224", "large_patch14_clip_336")
        ),
        ("vit_pe_core_tiny_patch16_384", {"img_size": 224}, SIZE),
    ],
)
def test_a_model_whose_tensors_do_not_tell_what_it_computes_is_refused_until_it_is_said(tmp_path, name, options, message):
    with torch.device("meta"):
        shapes = {n: tuple(t.shape) for n, t in timm.create_model(name, **options).state_dict().items()}
    path = saved(tmp_path / "a.pt", {n: torch.zeros(1).expand(shape) for n, shape in shapes.items()})
    with pytest.raises(UserError, match=message):
        read_checkpoint(path)
    if message == FAMILY:
        assert read_checkpoint(path, config=of_timm(name)).towers.vision.activation == "gelu"


def test_a_file_of_timms_own_saver_answers_as_timm_does(tmp_path):
    original = build_original("timm", TOWERS, random_tensors(TOWERS)).modules[0]
    torch.save({"state_dict": original.state_dict(), "args": argparse.Namespace()}, tmp_path / "a.pth")
    images = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        want = original.eval()(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert np.abs(load_encoder(tmp_path / "a.pth", heads=HEADS)(images) - want).max() < 1e-5 * np.abs(want).max()
    convert(tmp_path / "a.pth", tmp_path / "b.safetensors", heads=HEADS)
    write_checkpoint(tmp_path / "c.safetensors", TOWERS, random_tensors(TOWERS))
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()
