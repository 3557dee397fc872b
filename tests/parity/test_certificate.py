"""Certificates: equal where two models are, and where one has a fault, the layer that has it, and which one."""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxface.compare import check, main
from jaxface.errors import run_command
from jaxface.originals.certificate import certify
from jaxface.originals.comparison import draw
from jaxface.originals.pairs import made_pair, tower_pair
from jaxface.originals.reference import build_original, import_torch
from jaxface.report.certificate import certificate_page
from jaxface.weights import load_encoder
from small_models import KINDS, random_tensors
from weights_convert.checkpoint import write_checkpoint

torch = import_torch()[0]
KIND = "core with heads of 24 channels"


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """Our encoder, its tensors and its images; its values are computed once."""
    towers, tensors = KINDS[KIND], random_tensors(KINDS[KIND])
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    write_checkpoint(path, towers, tensors)
    images = np.random.default_rng(0).uniform(-1, 1, (3, 20, 20, 3)).astype(np.float32)
    encoder = load_encoder(path, config=towers)
    pair = tower_pair(encoder, build_original("timm", towers, tensors), "timm", towers, images, None)
    values = pair.ours()
    return lambda: values, encoder, towers, tensors, images


def certified(ours, spoil=lambda model: None):
    """The certificate against timm's model after `spoil` changed it."""
    values, encoder, towers, tensors, images = ours
    original = build_original("timm", towers, tensors)
    with torch.no_grad():
        spoil(original.modules[0].float())
    return certify(tower_pair(encoder, original, "timm", towers, images, None)._replace(ours=values))


def test_equal_models_are_within_the_originals_own_rounding_at_every_value(ours):
    found = certified(ours)
    assert found.verdict == "equal"
    assert {"patch", "embedding", "blocks.1.attn.qkv", "blocks.1.mlp.proj.input", "tokens", "pool.out", "features"} <= {
        layer.name for layer in found.layers
    }
    assert all(0 <= layer.error <= layer.budget < 1e-5 for layer in found.layers)


def of_rope(change):
    """Has a change made to the sines and cosines that every block is given."""

    def spoil(model):
        get_embed = model.rope.get_embed
        model.rope.get_embed = lambda *args, **options: change(get_embed(*args, **options))

    return spoil


def exchanged(embedding):
    sin, cos = embedding.chunk(2, -1)
    half = sin.shape[-1] // 2
    return torch.cat([torch.cat([x[..., half:], x[..., :half]], -1) for x in (sin, cos)], -1)


def still(embedding):
    sin, cos = embedding.chunk(2, -1)
    return torch.cat([torch.zeros_like(sin), torch.ones_like(cos)], -1)


def backwards(embedding):
    sin, cos = embedding.chunk(2, -1)
    return torch.cat([-sin, cos], -1)


def before_patches(change):
    return lambda model: model.patch_embed.register_forward_pre_hook(lambda _, args: (change(args[0]),))


def imagenet(x):
    mean, deviation = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return (x / 2 + 0.5 - x.new_tensor(mean)[:, None, None]) / x.new_tensor(deviation)[:, None, None]


def unscaled(model):
    for block in model.blocks:
        block.attn.fused_attn, block.attn.scale = False, 1.0


def perturb(model):
    model.blocks[1].mlp.fc1.weight[7, 5] += 0.01


def shuffle(model):
    rows = torch.arange(len(model.blocks[0].attn.qkv.weight)).reshape(3, -1)[[1, 0, 2]].reshape(-1)
    model.blocks[0].attn.qkv.weight.copy_(model.blocks[0].attn.qkv.weight[rows])


FAULTS = {
    "transposed kernel": (
        lambda m: m.blocks[1].attn.proj.weight.copy_(m.blocks[1].attn.proj.weight.T.clone()),
        "blocks.1.attn.out",
        r"blocks\.1\.attn\.out\.kernel is transposed",
    ),
    "epsilon": (lambda m: setattr(m.blocks[0].norm2, "eps", 1e-6), "blocks.0.norm2", "epsilon 1e-05 here, epsilon 1e-06 in the original"),
    "tanh": (lambda m: setattr(m.blocks[1].mlp, "act", torch.nn.GELU("tanh")), "blocks.1.mlp.proj.input", "exact GELU here, tanh GELU"),
    "relu": (lambda m: setattr(m.blocks[0].mlp, "act", torch.nn.ReLU()), "blocks.0.mlp.proj.input", "exact GELU here, ReLU"),
    "axes": (of_rope(exchanged), "blocks.0.attn.out.input", "axial here, rotary positions axial with x and y exchanged"),
    "no rope": (of_rope(still), "blocks.0.attn.out.input", "axial here, no rotary positions"),
    "rope backwards": (of_rope(backwards), "blocks.0.attn.out.input", "axial here, rotary positions axial turned backwards"),
    "scale": (unscaled, "blocks.0.attn.out.input", "axial here, rotary positions axial, scores not scaled"),
    "missing bias": (lambda m: m.blocks[0].mlp.fc1.bias.zero_(), "blocks.0.mlp.fc", r"mlp\.fc\.bias is zero in the original"),
    "channels": (before_patches(lambda x: x.flip(1)), "patch", r"channels as given here, channels in reverse \(BGR\)"),
    "rows for columns": (before_patches(lambda x: x.transpose(2, 3)), "patch", "channels as given here, rows for columns"),
    "pixels": (before_patches(imagenet), "patch", "by the mean and deviation of imagenet in the original"),
    "one value": (perturb, "blocks.1.mlp.fc", r"differs in 1 of \d+ values, first at \[5, 7\]"),
    "sign": (lambda m: m.norm.weight.neg_(), "norm_post", r"norm_post\.scale has the other sign"),
    "factor": (lambda m: m.blocks[1].mlp.fc2.weight.mul_(0.5), "blocks.1.mlp.proj", r"mlp\.proj\.kernel is 2 times the original's"),
    "order": (shuffle, "blocks.0.attn.qkv", r"attn\.qkv\.kernel has the same values in another order"),
    "position": (lambda m: m.pos_embed[0, 3].mul_(1.5), "norm_pre.input", "positions differs"),
    "probe": (lambda m: m.attn_pool.latent.mul_(2), "pool.q.input", r"pool\.probe is 0\.5 times the original's"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_in_its_layer_with_its_cause(fault, ours):
    spoil, layer, cause = FAULTS[fault]
    found = certified(ours, spoil)
    assert found.verdict == "differs"
    assert found.first_departure == layer
    if cause is not None:
        assert found.cause is not None
        assert re.search(cause, found.cause), found.cause


def test_a_certificate_in_bfloat16_allows_what_the_originals_own_bfloat16_loses(ours):
    _, encoder, towers, tensors, images = ours
    rounded = jax.jit(lambda encoder: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), encoder))(encoder)
    rounded.dtype = jnp.bfloat16
    found = certify(tower_pair(rounded, build_original("timm", towers, tensors), "timm", towers, images, None), "bfloat16")
    assert found.verdict == "equal"
    assert 1e-3 < found.layers[-1].original_error < found.layers[-1].budget < 0.1


MIXER = """
import jax
import numpy as np
import torch
from flax import nnx
from timm.models.mlp_mixer import MlpMixer

SIZES = {"img_size": 16, "patch_size": 4, "num_blocks": 2, "embed_dim": 24, "num_classes": 5}


class Mlp(nnx.Module):
    def __init__(self, width, hidden, rngs):
        self.fc1, self.fc2 = nnx.Linear(width, hidden, rngs=rngs), nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, x):
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=APPROXIMATE))


class Block(nnx.Module):
    def __init__(self, tokens, width, rngs):
        self.norm1, self.norm2 = (nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs) for _ in range(2))
        self.mlp_tokens, self.mlp_channels = Mlp(tokens, width // 2, rngs), Mlp(width, 4 * width, rngs)

    def __call__(self, x):
        x = x + self.mlp_tokens(self.norm1(x).swapaxes(1, 2)).swapaxes(1, 2)
        return x + self.mlp_channels(self.norm2(x))


class Mixer(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 24, (4, 4), strides=4, padding="VALID", rngs=rngs)
        self.blocks = nnx.List([Block(16, 24, rngs) for _ in range(2)])
        self.norm, self.head = nnx.LayerNorm(24, epsilon=1e-6, rngs=rngs), nnx.Linear(24, 5, rngs=rngs)

    def __call__(self, images):
        x = self.stem(images)
        x = x.reshape(len(x), -1, 24)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def original():
    torch.manual_seed(0)
    return MlpMixer(**SIZES).eval()


def mine():
    model, tensors = Mixer(nnx.Rngs(0)), {name: t.detach().numpy() for name, t in original().named_parameters()}
    for path, module in nnx.iter_modules(model):
        name = ".".join(map(str, path)).replace("stem", "stem.proj")
        if hasattr(module, "kernel"):
            kernel = tensors[f"{name}.weight"]
            module.kernel[...] = kernel.transpose(*range(2, kernel.ndim), 1, 0)
        if hasattr(module, "scale"):
            module.scale[...] = tensors[f"{name}.weight"]
        if hasattr(module, "bias") and isinstance(module.bias, nnx.Param):
            module.bias[...] = tensors[f"{name}.bias"]
    return model


def inputs():
    return np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
"""


@pytest.mark.parametrize(
    ("approximate", "status", "verdict", "first"),
    [("False", 0, "equal", None), ("True", 1, "differs", "blocks.0.mlp_tokens.fc2.input")],
)
def test_a_model_that_is_not_known_here_is_compared_from_a_users_file(approximate, status, verdict, first, tmp_path, monkeypatch, capsys):
    (tmp_path / "mixer.py").write_text(MIXER.replace("APPROXIMATE", approximate))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["compare", "--jax", "mixer.py:mine", "--torch", "mixer.py:original", "--json"])
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    printed = capsys.readouterr().out
    assert ended.value.code == status
    found = json.loads(printed)
    assert (found["verdict"], found["first_departure"]) == (verdict, first)
    assert {"stem", "blocks.1.norm2", "head", "output"} <= {layer["name"] for layer in found["layers"]}
    assert json.loads((tmp_path / "compare.json").read_text()) == found
    page = (tmp_path / "compare.html").read_text()
    assert not re.findall(r"https?://(?!www\.w3\.org|purl\.org|creativecommons\.org|matplotlib\.org)", page)
    assert ("exact GELU in the original" in page) == (status == 1)


def test_check_raises_in_a_test_suite_and_names_the_layer():
    torch.manual_seed(0)
    theirs = torch.nn.Linear(6, 4)
    mine = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
    mine.kernel[...] = theirs.weight.detach().numpy().T
    mine.bias[...] = theirs.bias.detach().numpy()
    x = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    assert check(mine, theirs, x).verdict == "equal"
    mine.bias[...] += 0.5
    with pytest.raises(AssertionError, match=r"output: error .*, budget .*; the same vector is added to every row"):
        check(mine, theirs, x)


class Stages(nnx.Module):
    """A model whose modules are called stages, and which turns what it gives into no number where it is told to."""

    def __init__(self, theirs, factor):
        self.stages = nnx.List([nnx.Linear(6, 6, rngs=nnx.Rngs(0)) for _ in theirs])
        self.drop, self.factor = nnx.Dropout(0.5, rngs=nnx.Rngs(0)), factor
        for mine, its in zip(self.stages, theirs, strict=True):
            mine.kernel[...], mine.bias[...] = its.weight.detach().numpy().T, its.bias.detach().numpy()

    def __call__(self, x):
        for stage in self.stages:
            x = self.drop(stage(x))
        return x * self.factor


def test_modules_of_any_name_are_compared_and_the_model_trains_on_as_it_did():
    theirs = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 6))
    model = Stages(theirs, 1.0)
    x = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    found = check(model, theirs, x, names={"stages.0": "0", "stages.1": "1"})
    assert {"stages.0", "stages.1", "output"} <= {layer.name for layer in found.layers}
    assert not model.drop.deterministic


def test_what_is_no_number_in_both_is_not_equal_and_has_a_page():
    theirs = torch.nn.Sequential(torch.nn.Linear(6, 6))
    with torch.no_grad():
        theirs[0].bias.fill_(float("nan"))
    pair = made_pair(Stages(theirs, 1.0), theirs, [np.ones((2, 6), np.float32)], {"stages.0": "0"})
    found = certify(pair)
    assert (found.verdict, found.first_departure) == ("differs", "stages.0")
    page = certificate_page("both", found.to_json(), ["stages.0"], draw(found, None, "both", ("a", "b")))
    assert "beyond its budget" in page
