"""Every field of PEFT's LoraConfig, set by PEFT itself: it is loaded here to the output that PEFT has, or refused by name."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from peft_on_timm import EVERYTHING, adapted_by_peft, forward, peft, plain_encoder, timm_model, torch
from safetensors.numpy import load_file, save_file

import jaxface
from jaxface.adapters.adapt import merge
from jaxface.adapters.peft_config import CONFIG
from jaxface.adapters.peft_format import load_peft, save_peft
from jaxface.errors import UserError
from small_models import random_images

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT tells what it does not look at

IMAGES = random_images(2, 20, 20)

SAME = "same"
VALUES = {
    "task_type": (SAME, "FEATURE_EXTRACTION"),
    "peft_type": (SAME, "LORA"),  # PEFT sets it itself: another would be another configuration
    "auto_mapping": (SAME, {"base_model_class": "Other", "parent_library": "else"}),
    "peft_version": (SAME, "0.1.0"),
    "base_model_name_or_path": (SAME, "some/where"),
    "revision": (SAME, "main"),
    "inference_mode": (SAME, True),
    "r": (SAME, 5),
    "target_modules": (SAME, ["attn.qkv", "blocks.1.mlp.fc1", "q"]),
    "exclude_modules": (SAME, r".*\.1\.mlp.*|head"),
    "lora_alpha": (SAME, 0),
    "lora_dropout": (SAME, 0.25),
    "fan_in_fan_out": (SAME, True),
    "bias": (None, "all"),
    "use_rslora": (SAME, True),
    "modules_to_save": (None, ["norm"]),
    "init_lora_weights": (SAME, "pissa"),
    "layers_to_transform": (SAME, [1]),
    "layers_pattern": (SAME, "blocks"),
    "rank_pattern": (SAME, {r"blocks\.0\.attn\.qkv": 6, "fc1": 2}),
    "alpha_pattern": (SAME, {r"blocks.0.attn.(qkv|proj)": 11, "^head": 0.5}),
    "megatron_config": (None, {"hidden": 1}),
    "megatron_core": (SAME, "elsewhere"),
    "trainable_token_indices": (None, [1, 2]),
    "loftq_config": (SAME, {"loftq_bits": 8}),  # without init_lora_weights "loftq" PEFT does not look at it
    "eva_config": (SAME, {"rho": 1.0}),
    "corda_config": (SAME, {"corda_method": "kpm"}),
    "lora_ga_config": (SAME, {"direction": "ArB2r"}),
    "use_dora": (SAME, True),
    "velora_config": (None, {"num_groups": 2}),
    "alora_invocation_tokens": (None, [7]),
    "use_qalora": (None, True),
    "qalora_group_size": (SAME, 8),
    "monteclora_config": (None, {"num_samples": 2}),
    "layer_replication": (None, [[0, 1]]),
    "runtime_config": (SAME, {"ephemeral_gpu_offload": False}),
    "lora_bias": (None, True),
    "target_parameters": (None, ["blocks.0.attn.qkv.weight"]),
    "use_bdlora": (None, {"nblocks": 2}),
    "arrow_config": (None, {"top_k": 1}),
    "kasa_config": (None, {"beta": 0.1}),
    "ensure_weight_tying": (SAME, True),
}
"""By field: a value that is not the default, and whether the folder loads (`SAME`) or is refused."""
IN_THE_FILE = ("auto_mapping", "peft_version", "revision", "runtime_config", "loftq_config", "eva_config", "corda_config", "lora_ga_config")
"""Fields of these take objects in PEFT's constructor, or PEFT writes them itself: they are set in the file that PEFT wrote."""
MORE = {
    "dora of rank 3, alpha 7, rslora": {"use_dora": True, "use_rslora": True, "r": 3, "lora_alpha": 7},
    "pissa with dora": {"init_lora_weights": "pissa", "use_dora": True, "lora_alpha": 6},
    "pissa of several ranks": {"init_lora_weights": "pissa", "rank_pattern": {"fc1": 2, r"1\.attn\.qkv": 7}},
    "pissa of one block": {"init_lora_weights": "pissa", "target_modules": r"blocks\.1\..*(qkv|proj|fc1)"},
    "olora": {"init_lora_weights": "olora"},
    "olora with rslora": {"init_lora_weights": "OLoRA", "use_rslora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "eva": {"init_lora_weights": "eva"},
    "mica": {"init_lora_weights": "mica"},
    "no init": {"init_lora_weights": False},
    "alpha below zero": {"lora_alpha": -3},
    "every linear": {"target_modules": "all-linear"},
    "one block by number": {"layers_to_transform": 0, "layers_pattern": ["layers", "blocks"], "target_modules": ["qkv", "fc2"]},
    "excluded by ends": {"exclude_modules": ["fc1", "head"]},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return plain_encoder(tmp_path_factory.mktemp("plain"))


def write_folder(folder, **options):
    """What PEFT saves for timm's model, A and B and magnitudes random."""
    adapted_by_peft(**{"r": 4, "target_modules": EVERYTHING, **options}).save_pretrained(folder)


@pytest.fixture(scope="module")
def written(plain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "adapter"
    save_peft(jaxface.adapt(plain, "lora", rank=4), folder)
    return folder


@pytest.fixture
def adapter(written, tmp_path):
    """A folder of LoRA adapters of rank 4, to be spoilt."""
    return Path(shutil.copytree(written, tmp_path / "adapter"))


def change(folder, **fields):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | fields))


@pytest.fixture(autouse=True)
def exact_svd(monkeypatch):
    """torch's SVD in float64: in float32 its own rounding turns close singular vectors by 1e-5, on each machine otherwise."""
    svd = torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda a, **options: tuple(x.to(a.dtype) for x in svd(a.double(), **options)))


def answer_of_peft(folder):
    model = peft.PeftModel.from_pretrained(timm_model(), str(folder)).eval().get_base_model()
    with torch.no_grad():
        return model(torch.from_numpy(IMAGES).permute(0, 3, 1, 2)).numpy()


def difference(found, expected):
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


def test_every_field_of_this_peft_is_walked():
    assert {field.name for field in dataclasses.fields(peft.LoraConfig)} == set(VALUES)


@pytest.mark.parametrize("field", [field for field, (fate, _) in VALUES.items() if fate is None])
def test_a_field_that_changes_more_is_refused_by_name(plain, adapter, field):
    change(adapter, **{field: VALUES[field][1]})
    with pytest.raises(UserError, match=rf"{field} is .*; expected "):
        load_peft(plain, adapter)


@pytest.mark.parametrize("field", [field for field, (fate, _) in VALUES.items() if fate == SAME])
def test_a_field_is_computed_as_peft_does(plain, tmp_path, field):
    value = VALUES[field][1]
    extra = {"layers_pattern": {"layers_to_transform": [0]}, "layers_to_transform": {"layers_pattern": "blocks"}}.get(field, {})
    if extra:
        extra["target_modules"] = ["qkv", "fc1"]
    in_the_file = field in ("peft_type", *IN_THE_FILE)
    write_folder(tmp_path, **({} if in_the_file else {**extra, field: value}))
    if in_the_file:
        change(tmp_path, **{field: value})
    assert difference(forward(load_peft(plain, tmp_path), IMAGES), answer_of_peft(tmp_path)) < 1e-5


@pytest.mark.parametrize("options", MORE.values(), ids=list(MORE))
def test_values_of_a_field_are_computed_as_peft_does(plain, tmp_path, options):
    write_folder(tmp_path, **options)
    encoder = load_peft(plain, tmp_path)
    want = answer_of_peft(tmp_path)
    assert difference(forward(encoder, IMAGES), want) < 1e-5
    if "init_lora_weights" in options:  # merged, and written again: PEFT reads what was taken out of the base as further ranks
        assert difference(forward(merge(encoder), IMAGES), want) < 1e-5
        save_peft(encoder, tmp_path / "again")
        assert difference(answer_of_peft(tmp_path / "again"), want) < 1e-5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"init_lora_weights": "corda"}, "init_lora_weights is 'corda'; expected one of true"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights is 'lora_ga'"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"init_lora_weights": None}, "init_lora_weights is null"),
        ({"init_lora_weights": "pissa", "lora_alpha": 0}, "adapter scaling 0: an update that starts as pissa"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'; expected a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha is NaN; expected a number"),
        ({"lora_alpha": True}, "lora_alpha is true"),
        ({"r": 0}, "r is 0"),
        ({"r": 3}, r"has A \(4, 96\) and B .*; expected \[3, in\]"),
        ({"use_dora": "yes"}, "use_dora is 'yes'"),
        ({"rank_pattern": {"(": 4}}, "rank_pattern has a wrong regular expression"),
        ({"alpha_pattern": {"qkv": "9"}}, "alpha_pattern is "),
        ({"target_modules": None}, "target_modules is null"),
        ({"target_modules": "attn.("}, "target_modules has a wrong regular expression"),
        ({"target_modules": ["qkv"]}, "has tensors of .*, which the configuration does not adapt"),
        ({"target_modules": r".*(qkv|proj|fc1|fc2)|attn_pool\..*"}, r"the configuration adapts [\w.]+, but"),
        ({"lora_dropout": 1.5}, "lora_dropout is 1.5"),
        ({"new_in_a_later_peft": {"anything": 1}}, "new_in_a_later_peft is .*; expected off"),
        # what PEFT does not take together, or reads otherwise than a richer dialect of regular expressions
        ({"target_modules": ".*(qkv|fc1)", "layers_to_transform": 0}, "layers_to_transform is 0; expected null, since target_modules is"),
        ({"target_modules": "all-linear", "layers_pattern": "blocks"}, "layers_pattern is 'blocks'; expected null, since target_modules"),
        ({"layers_pattern": ["blocks"]}, r"layers_pattern is \[.blocks.\]; expected null, since layers_to_transform names no block"),
        ({"alpha_pattern": {"qkw{e<=1}": 16}}, "alpha_pattern has a wrong regular expression"),
        ({"rank_pattern": {"(?i)QKV": 4}}, "rank_pattern has a wrong regular expression"),
        ({"target_modules": "[[:alpha:]].*qkv"}, "target_modules has a wrong regular expression"),
        (
            {"target_modules": ["qkv"], "layers_to_transform": [0], "layers_pattern": r"blocks\.0\.attn\.qkv|x"},
            "has tensors of .*, which the configuration does not adapt",
        ),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_what_cannot_be_computed_is_refused_by_name_and_value(plain, adapter, fields, message):
    change(adapter, **fields)
    with pytest.raises(UserError, match=message):
        load_peft(plain, adapter)


def test_a_tensor_under_two_spellings_of_its_name_is_refused(plain, adapter):
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file(tensors | {name.removeprefix("base_model.model."): 2 * tensors[name]}, path)
    with pytest.raises(UserError, match=r"lora_A twice, under two spellings of its name"):
        load_peft(plain, adapter)


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"r": 4, "r": 8}', "'r' stands there twice"), ("[" * 10**6, "nested too deeply"), ('{"r": 4}', "no peft_type"), ("", "no JSON")],
    ids=["twice", "deep", "foreign", "empty"],
)
def test_a_configuration_that_is_none_is_one_line(plain, adapter, text, message):
    (adapter / CONFIG).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_peft(plain, adapter)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("split_qkv", [False, True])
def test_an_update_that_starts_from_the_kernel_changes_nothing_at_first_and_takes_the_largest_part(plain, method, init, split_qkv):
    encoder = jaxface.adapt(plain, method, rank=3, init=init, scaling=0.5, split_qkv=split_qkv)
    assert difference(forward(encoder, IMAGES), np.asarray(forward(plain, IMAGES))) < 1e-5
    kernel = encoder.stages[0].attn.out.kernel
    w = np.asarray(kernel.base[...][1], np.float64)
    if init == "pissa":
        u, s, vh = np.linalg.svd(w)
        start = u[:, :3] * s[:3] @ vh[:3]
    else:
        q, r = np.linalg.qr(w.T)
        start = (q[:, :3] @ r[:3]).T
    factor = 0.5 if init == "pissa" else 1.0  # OLoRA's A B is what the decomposition gives, whatever it is scaled by
    assert np.abs(factor * np.asarray(kernel.a[...][1] @ kernel.b[...][1]) - start).max() < 1e-5
    with pytest.raises(UserError, match="no init 'svd'; known: pissa, olora, or gaussian or kaiming"):
        jaxface.adapt(plain, method, init="svd")
    with pytest.raises(UserError, match="adapter rank 97: a kernel of 96 x 96 has at most 96"):
        jaxface.adapt(plain, method, rank=97, init=init)
