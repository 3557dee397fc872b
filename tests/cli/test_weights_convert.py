"""`python -m weights_convert` as a user calls it, on whole and on broken checkpoints."""

import json
import os
import re
import struct
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy

from jaxface.errors import UserError, run_command
from jaxface.models.variants import VARIANTS
from jaxface.originals.reference import import_torch, state_dict
from small_models import FAMILIES, KINDS, random_tensors
from weights_convert.__main__ import main
from weights_convert.checkpoint import convert, read_checkpoint, write_checkpoint
from weights_convert.tensor_files import open_tensors, write_tensors
from weights_convert.tensor_parts import finite
from weights_convert.towers import Heads, Towers

TOWERS = KINDS["core without class token, MLP not 4x"]
HEADS = Heads(4, 8, 4)
torch = import_torch()[0]


@pytest.fixture
def meta():
    """A checkpoint in Meta's layout as torch holds it."""
    return state_dict("meta", TOWERS, random_tensors(TOWERS))


def saved(path, value):
    torch.save(value, path)
    return path


def complaint(path, **options):
    """The one line that converting the file ends with; nothing may be left behind by it."""
    before = set(os.listdir(path.parent))
    with pytest.raises(UserError) as error:
        convert(path, path.parent / "out.safetensors", heads=HEADS, **options)
    assert set(os.listdir(path.parent)) == before
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def command(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["weights_convert", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    return ended.value.code


def test_the_command_says_what_it_found_and_what_it_left_out(meta, tmp_path, monkeypatch, capsys):
    source = saved(tmp_path / "a.pt", meta)
    assert command(monkeypatch, source, tmp_path / "b.safetensors", "--layout", "timm", "--heads", 4, "--text-heads", 4) == 0
    printed = capsys.readouterr().out
    assert "layout meta, 72 tensors" in printed
    assert "left out: the text tower" in printed
    assert read_checkpoint(tmp_path / "b.safetensors").towers.vision == TOWERS.vision


def test_the_command_ends_with_status_2_and_one_line(meta, tmp_path, monkeypatch, capsys):
    del meta["visual.ln_post.bias"]
    source = saved(tmp_path / "a.pt", meta)
    assert command(monkeypatch, source, tmp_path / "b.pt", "--heads", 4, "--text-heads", 4) == 2
    assert capsys.readouterr().err.strip() == f"error: {source}: read as meta, custom: 1 tensor missing: visual.ln_post.bias [64]"
    assert os.listdir(tmp_path) == ["a.pt"]


def test_heads_of_what_a_checkpoint_does_not_have_are_refused(tmp_path, monkeypatch, capsys):
    source, plain = tmp_path / "a.safetensors", FAMILIES["OpenCLIP"]
    write_checkpoint(source, plain, random_tensors(plain))
    for option in ("pool", "text"):
        assert command(monkeypatch, source, tmp_path / "b.pt", "--heads", 4, f"--{option}-heads", 4) == 2
        assert f"{option}_heads 4: it has no effect, {source} has no" in capsys.readouterr().err
    assert command(monkeypatch, source, tmp_path / "b.pt", "--heads", 2) == 2
    assert "heads 2: it has no effect, custom has 4" in capsys.readouterr().err
    assert not (tmp_path / "b.pt").exists()
    assert command(monkeypatch, source, tmp_path / "b.pt", "--heads", 4) == 0


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: {"state_dict": tensors, "epoch": 3},
        lambda tensors: {"weights": {"model": tensors}},
        lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()},
        lambda tensors: {"model": {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}},
        lambda tensors: {name: tensor.t().contiguous().t() if tensor.ndim == 2 else tensor for name, tensor in tensors.items()},
    ],
    ids=["state_dict", "weights and model", "module.", "parameters", "strided"],
)
def test_the_wrappings_of_released_files_are_opened(wrap, meta, tmp_path):
    read = read_checkpoint(saved(tmp_path / "a.pt", wrap(meta)), heads=HEADS)
    expected = random_tensors(TOWERS)
    assert read.towers == TOWERS
    assert read.tensors.keys() == expected.keys()
    assert all(np.array_equal(read.tensors[name], expected[name]) for name in expected)


def test_what_is_written_torch_and_safetensors_read(tmp_path):
    from safetensors.torch import load_file

    tensors = random_tensors(TOWERS)
    expected = state_dict("open_clip", TOWERS, tensors)
    for suffix, load in ((".pt", lambda path: torch.load(path, weights_only=True, mmap=True)), (".safetensors", load_file)):
        write_checkpoint(tmp_path / f"a{suffix}", TOWERS, tensors, layout="open_clip")
        loaded = load(tmp_path / f"a{suffix}")
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("kind", "changes", "foreign", "says"),
    [
        ("DINOv2", {"layer_scale": False}, (), r"as DINOv2-\w+'s, but without LayerScale; where that is all .* EncoderConfig"),
        ("DINOv2", {"layer_scale": False}, ("head.weight", "head.bias"), "but without LayerScale; where that is all"),
        (
            "DINOv2",
            {"layer_scale": False},
            ("dist_token",),
            "LayerScale, and with 1 tensor that no encoder here has: dist_token",
        ),
        ("SigLIP", {"pool": False}, (), r"as SigLIP2?-\w+-\d+'s, but without an attention pool; where"),
        ("DINOv3", {"qkv_bias": "all"}, ("blocks.0.attn.freqs",), "with biases of queries, keys and values, and with 1 tensor that"),
        ("CLIP", {"gate": "packed"}, (), "with a gate in the MLPs; where"),
    ],
)
def test_a_vit_of_no_family_is_told_from_the_nearest_one(kind, changes, foreign, says, tmp_path):
    towers = replace(FAMILIES[kind], vision=replace(FAMILIES[kind].vision, **changes))
    state = state_dict("timm", towers, random_tensors(towers)) | {name: torch.ones(64) for name in foreign}
    assert re.search(says, complaint(saved(tmp_path / "a.pt", state)))


HALF, CLIPS = {"mean": [0.5] * 3, "std": [0.5] * 3}, {"mean": [0.4815, 0.4578, 0.4082], "std": [0.2686, 0.2613, 0.2758]}


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (
            {"config": {"architecture": "vit_base_patch16_clip_224", "pretrained_cfg": HALF | {"crop_mode": "squash"}}},
            ("gelu", "half", "bicubic-squash"),
        ),
        (
            {
                "open_clip_config": {
                    "model_cfg": {"quick_gelu": True, "vision_cfg": {}},
                    "preprocess_cfg": CLIPS | {"resize_mode": "shortest"},
                }
            },
            ("quick_gelu", "clip", "bicubic-middle"),
        ),
        ({"open_clip_config": {"model_cfg": {"vision_cfg": {}}}}, ("gelu", "clip", "bicubic-middle")),
        (
            {"config": {"hidden_act": "quick_gelu"}, "preprocessor_config": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}},
            ("quick_gelu", "half", "bicubic-middle"),
        ),
        (
            {"config": {"hidden_act": "gelu"}, "preprocessor_config": {"image_mean": [0.1] * 3, "image_std": [1] * 3}},
            "none of half, imagenet",
        ),
    ],
)
def test_what_a_folder_says_of_its_preprocessing_is_taken_or_refused(files, says, tmp_path):
    state = state_dict("timm", FAMILIES["OpenCLIP"], random_tensors(FAMILIES["OpenCLIP"]))
    saved(tmp_path / "pytorch_model.bin", state)
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    if isinstance(says, str):
        assert says in complaint(tmp_path)
        return
    vision = read_checkpoint(tmp_path, heads=HEADS).towers.vision
    assert (vision.activation, vision.pixels, vision.framing) == says
    if says[:2] == ("gelu", "half"):
        assert "its configuration says pixels half" in complaint(tmp_path, config=FAMILIES["OpenCLIP"].vision)


def test_a_model_of_several_resolutions_is_named(tmp_path):
    state = state_dict("timm", FAMILIES["SigLIP"], random_tensors(FAMILIES["SigLIP"]))
    state["embeds.proj.weight"] = state.pop("patch_embed.proj.weight").flatten(1)
    assert "of several resolutions at once (NaFlex, by its embeds.proj.weight" in complaint(saved(tmp_path / "a.pt", state))


def test_a_file_of_before_framing_was_told_has_its_variants():
    for name, framing in (("DINOv3-Mini-10-60", "bicubic-middle"), ("PE-Mini-10-60", "bilinear-squash")):
        told = json.loads(Towers(VARIANTS[name]).to_json())
        told["vision"].pop("framing", None)
        assert Towers.from_metadata(json.dumps(told)) == Towers(VARIANTS[name])
        assert VARIANTS[name].framing == framing


def test_dtypes_are_kept_or_converted(meta, tmp_path):
    source = saved(tmp_path / "a.pt", {name: tensor.bfloat16() for name, tensor in meta.items()})
    convert(source, tmp_path / "kept.pt", layout="meta", heads=HEADS)
    convert(source, tmp_path / "wide.pt", layout="meta", heads=HEADS, dtype=np.float32)
    kept, wide = (torch.load(tmp_path / name, weights_only=True) for name in ("kept.pt", "wide.pt"))
    for name, tensor in meta.items():
        assert torch.equal(kept[name], tensor.bfloat16())
        assert torch.equal(wide[name], tensor.bfloat16().float())


def test_files_of_torchs_old_format_are_read_by_torch(meta, tmp_path):
    torch.save(meta, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "old.pt", heads=HEADS).towers == TOWERS


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(suffix, share, tmp_path):
    path = tmp_path / f"a{suffix}"
    write_checkpoint(path, TOWERS, random_tensors(TOWERS))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert any(word in complaint(path) for word in ("truncated", "no checkpoint"))


def test_a_missing_tensor_is_named_with_its_shape(meta, tmp_path):
    del meta["visual.transformer.resblocks.1.mlp.c_fc.weight"], meta["visual.attn_pool.attn.in_proj_bias"]
    message = complaint(saved(tmp_path / "a.pt", meta))
    assert "2 tensors missing" in message
    assert "visual.transformer.resblocks.1.mlp.c_fc.weight [372, 64]" in message
    assert "visual.attn_pool.attn.in_proj_bias [192]" in message


def test_a_tensor_too_many_is_named(meta, tmp_path):
    meta["visual.adapter.weight"] = torch.zeros(3, 5)
    assert "1 tensor too many: visual.adapter.weight [3, 5]" in complaint(saved(tmp_path / "a.pt", meta))


def test_a_transposed_tensor_is_named_with_both_shapes(meta, tmp_path):
    name = "transformer.resblocks.0.mlp.c_proj.weight"
    meta[name] = meta[name].t().contiguous()
    assert f"1 tensor of the wrong shape: {name} is [256, 64], expected [64, 256]" in complaint(saved(tmp_path / "a.pt", meta))


def test_a_tensor_of_another_rank_is_named_with_both_shapes(meta, tmp_path):
    meta["visual.attn_pool.probe"] = meta["visual.attn_pool.probe"][0]
    assert "visual.attn_pool.probe is [1, 64], expected [1, 1, 64]" in complaint(saved(tmp_path / "a.pt", meta))


def test_many_faults_make_a_short_line_that_counts_them(meta, tmp_path):
    broken = {name: tensor for name, tensor in meta.items() if "ln_1" not in name and "ln_2" not in name}
    broken |= {f"extra.{i}": torch.zeros(1) for i in range(9)}
    message = complaint(saved(tmp_path / "a.pt", broken))
    assert "16 tensors missing: " in message
    assert "and 10 more; 9 tensors too many: " in message
    assert len(message) < 1000


def test_another_variant_than_the_one_asked_for_is_refused(meta, tmp_path):
    message = complaint(saved(tmp_path / "a.pt", meta), config="PE-Core-T16-384")
    assert "PE-Core-T16-384" in message
    assert "visual.conv1.weight is [64, 3, 8, 8], expected [192, 3, 16, 16]" in message


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tensor_that_is_not_finite_is_named_as_the_file_spells_it(value, dtype, meta, tmp_path):
    meta["visual.transformer.resblocks.1.attn.out_proj.weight"][3, 5] = value
    meta = {name: tensor.to(getattr(torch, dtype)) for name, tensor in meta.items()}
    message = complaint(saved(tmp_path / "a.pt", meta))
    assert "1 tensor with NaN or infinity inside: visual.transformer.resblocks.1.attn.out_proj.weight" in message


def test_values_beyond_the_range_of_the_new_dtype_are_refused(meta, tmp_path):
    meta["visual.positional_embedding"][0, 0] = 1e6
    source = saved(tmp_path / "a.pt", meta)
    with pytest.raises(UserError, match=r"visual\.positions has values beyond the range of float16"):
        convert(source, tmp_path / "b.safetensors", heads=HEADS, dtype=np.float16)


def test_a_head_bias_that_is_not_zero_has_no_place_elsewhere(tmp_path):
    tensors = state_dict("timm", TOWERS, random_tensors(TOWERS))
    assert read_checkpoint(saved(tmp_path / "a.pt", tensors), heads=HEADS).layout.name == "timm"
    tensors["head.bias"][2] = 0.5
    assert "head.bias: its bias is not zero" in complaint(saved(tmp_path / "a.pt", tensors))


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("evil", [Evil(os.system, "touch pwned"), Evil(eval, "open('pwned', 'w')"), Evil(__import__, "pwned")])
def test_a_pickle_that_runs_code_is_refused_and_not_run(evil, meta, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = complaint(saved(tmp_path / "a.pt", {**meta, "evil": evil}))
    assert "refused: its pickle asks for" in message
    assert not (tmp_path / "pwned").exists()
    torch.save({**meta, "evil": evil}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    complaint(tmp_path / "a.pt")
    assert not (tmp_path / "pwned").exists()


def forged(path, size, stride, offset=0, count=4, data=b"\0" * 16):
    """A file whose one tensor claims that size, stride and offset within a storage of `count` numbers."""
    write_tensors(path, {"a": [np.zeros(4, np.float32)]})
    with zipfile.ZipFile(path) as archive:
        content = archive.read("archive/data.pkl")

    def numbers(*values):
        return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"

    whole = b"J" + struct.pack("<i", 4) + b"tQJ\0\0\0\0" + numbers(4) + numbers(1)
    assert whole in content
    false = b"J" + struct.pack("<i", count) + b"tQJ" + struct.pack("<i", offset) + numbers(*size) + numbers(*stride)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content.replace(whole, false))
        archive.writestr("archive/data/0", data)
    return path


@pytest.mark.parametrize(
    "false",
    [
        {"size": (5,), "stride": (1,)},
        {"size": (4,), "stride": (2,)},
        {"size": (2,), "stride": (-1,)},
        {"size": (2, 2), "stride": (1,)},
        {"size": (4,), "stride": (1,), "offset": 1},
        {"size": (1,), "stride": (1,), "offset": -1},
        {"size": (4000,), "stride": (1,), "count": 4000},
    ],
)
def test_a_tensor_that_reaches_beyond_its_bytes_is_refused(false, tmp_path):
    assert any(word in complaint(forged(tmp_path / "a.pt", **false)) for word in ("refused", "truncated"))


def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path):
    (tmp_path / "text.pt").write_text("just a text file, nothing more")
    assert "neither a safetensors file nor one of torch's" in complaint(tmp_path / "text.pt")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme", "hello")
    assert "not one of torch's checkpoints" in complaint(tmp_path / "other.pt")
    write_tensors(tmp_path / "resnet.pt", {"layer1.0.conv1.weight": [np.zeros((2, 2), np.float32)]})
    assert "no layout of an encoder" in complaint(tmp_path / "resnet.pt")
    saved(tmp_path / "list.pt", [torch.zeros(1)])
    assert "holds a list" in complaint(tmp_path / "list.pt")
    for name, message in (("nowhere.pt", "no such file"), (".", "a folder")):
        with pytest.raises(UserError, match=message):
            convert(tmp_path / name, tmp_path / "b.pt")


def test_a_destination_that_cannot_be_written_is_said_so(meta, tmp_path):
    source = saved(tmp_path / "a.pt", meta)
    for target, message in (("b.onnx", "the suffix says the format"), ("no/b.pt", "no such folder")):
        with pytest.raises(UserError, match=message):
            convert(source, tmp_path / target, heads=HEADS)
    with pytest.raises(UserError, match="no layout 'flax'"):
        convert(source, tmp_path / "b.pt", layout="flax", heads=HEADS)


def test_a_damaged_pickle_is_one_line(meta, tmp_path):
    """Any byte of the pickle changed: either it still reads as a checkpoint or the error is ours."""
    source = saved(tmp_path / "a.pt", meta)
    with zipfile.ZipFile(source) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in entries if name.endswith("data.pkl"))
    random = np.random.RandomState(0)
    refused = 0
    for _ in range(150):
        content = bytearray(entries[name])
        content[random.randint(len(content))] = random.randint(256)
        with zipfile.ZipFile(source, "w") as archive:
            for entry, data in entries.items():
                archive.writestr(entry, bytes(content) if entry == name else data)
        try:
            read_checkpoint(source, heads=HEADS)
        except UserError:
            refused += 1
    assert refused > 50


def test_reading_copies_nothing(tmp_path):
    write_checkpoint(tmp_path / "a.pt", TOWERS, random_tensors(TOWERS))
    arrays = open_tensors(tmp_path / "a.pt").tensors.values()
    assert all(not array.flags.owndata and not array.flags.writeable for array in arrays)


@pytest.mark.parametrize(("values", "expected"), [([1e30, 1e30], True), ([1e30, np.inf], False), ([np.nan, 1e30], False)])
def test_values_whose_squares_overflow_are_told_from_infinite_ones_without_a_warning(values, expected, recwarn):
    assert finite(np.array(values, np.float32)) is expected
    assert not recwarn.list


@pytest.mark.parametrize("length", range(1, 9))
def test_tensors_start_at_a_multiple_of_eight_bytes(tmp_path, length):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"n" * length: [np.arange(3.0)]})
    content = path.read_bytes()
    assert struct.unpack("<Q", content[:8])[0] % 8 == 0
    assert content[-24:] == np.arange(3.0).tobytes()
    assert safetensors.numpy.load(content)["n" * length].tolist() == [0, 1, 2]
