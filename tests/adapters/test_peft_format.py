"""LoRA and DoRA against PEFT on timm's model of the same encoder, every parameter random, and folders in both directions."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peft_on_timm import BLOCKS, EVERYTHING, adapted_by_peft, forward, peft, plain_encoder, timm_model, torch

import jaxface
from jaxface.adapters.adapt import merge
from jaxface.adapters.dropout_keys import set_keys
from jaxface.adapters.low_rank import LowRank
from jaxface.adapters.peft_format import CONFIG, load_peft, save_peft
from jaxface.adapters.places import linears
from jaxface.errors import UserError
from jaxface.models.tree import flatten
from small_models import OPTIMISED, random_images

pytestmark = pytest.mark.usefixtures("strict_dtypes")

IMAGES = random_images(3, 20, 20)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return plain_encoder(tmp_path_factory.mktemp("plain"))


def theirs(**options):
    """timm's model adapted by PEFT, A, B and magnitude random."""
    return adapted_by_peft(**options).eval()


def torch_images():
    return torch.from_numpy(IMAGES).permute(0, 3, 1, 2)


def difference(ours, expected):
    expected = expected.detach().numpy()
    return float(np.abs(np.asarray(ours) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("dora", [False, True])
def test_outputs_and_gradients_equal_those_of_peft(plain, tmp_path, dora):
    model = theirs(r=4, lora_alpha=4, use_dora=dora, target_modules=EVERYTHING)
    model.save_pretrained(tmp_path)
    encoder = jaxface.load_peft(plain, tmp_path)
    output = model(torch_images())
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    (output * weight).sum().backward()

    arrays, structure = flatten(encoder)
    train = {n: v for n, v in arrays.items() if n.endswith((".kernel.a", ".kernel.b", ".kernel.magnitude"))}
    rest = {n: v for n, v in arrays.items() if n not in train}

    @partial(jax.jit, compiler_options=OPTIMISED if dora else None)
    def run(train):
        y, pull = jax.vjp(lambda train: structure.build(train, rest)(jnp.asarray(IMAGES)), train)
        return y, pull(jnp.asarray(weight.numpy()))[0]

    y, gradients = jax.tree.map(np.asarray, run(train))
    assert difference(y, output) < 1e-5
    gradients_of_theirs = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    kinds = {"a": "lora_A.default.weight", "b": "lora_B.default.weight", "magnitude": "lora_magnitude_vector.default.weight"}
    compared = 0
    for ours, module, block in [
        ("stages.0.attn.qkv", "blocks.1.attn.qkv", 1),
        ("stages.0.attn.out", "blocks.0.attn.proj", 0),
        ("stages.0.mlp.fc", "blocks.0.mlp.fc1", 0),
        ("stages.0.mlp.proj", "blocks.1.mlp.fc2", 1),
        ("pool.q", "attn_pool.q", None),
        ("pool.kv", "attn_pool.kv", None),
        ("pool.out", "attn_pool.proj", None),
        ("pool.mlp.fc", "attn_pool.mlp.fc1", None),
        ("pool.mlp.proj", "attn_pool.mlp.fc2", None),
        ("projection", "head", None),
    ]:
        for kind, name in kinds.items():
            if kind == "magnitude" and not dora:
                continue
            got = gradients[f"{ours}.kernel.{kind}"]
            got = got if block is None else got[block]
            expected = gradients_of_theirs[f"base_model.model.{module}.{name}"]
            assert difference(got.T, expected) < 1e-5, (ours, kind)
            compared += 1
    assert compared == (30 if dora else 20)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("split_qkv", [False, True])
def test_a_folder_written_here_gives_the_same_output_in_peft(plain, tmp_path, dora, split_qkv):
    encoder = jaxface.adapt(plain, "dora" if dora else "lora", rank=3, split_qkv=split_qkv, scaling=0.7)
    arrays, structure = flatten(encoder)
    rng = np.random.default_rng(0)
    drawn = {n: 0.1 * rng.normal(size=v.shape) for n, v in arrays.items() if n.endswith((".kernel.a", ".kernel.b", ".magnitude"))}
    changed = arrays | {n: np.asarray(np.asarray(arrays[n]) + v, np.float32) for n, v in drawn.items()}
    encoder = structure.build(changed)
    save_peft(encoder, tmp_path / "adapter", base="timm/some-model")
    model = peft.PeftModel.from_pretrained(timm_model(), str(tmp_path / "adapter")).eval()
    want = model(torch_images())
    assert difference(forward(encoder, IMAGES), want) < 1e-5
    again = load_peft(plain, tmp_path / "adapter")
    assert difference(forward(merge(again), IMAGES), want) < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"r": 3, "lora_alpha": 7, "use_rslora": True, "target_modules": BLOCKS},
        {"r": 2, "lora_alpha": 5, "use_dora": True, "target_modules": ["qkv", "fc1"], "rank_pattern": {r"blocks\.1\.attn\.qkv": 4}},
        {"r": 2, "lora_alpha": 5, "target_modules": ["attn.qkv"], "layers_to_transform": [1], "layers_pattern": "blocks"},
        {"r": 2, "lora_alpha": 2, "target_modules": ["attn.proj"], "alpha_pattern": {"blocks.0.attn.proj": 9}},
        {"r": 2, "lora_alpha": 2, "target_modules": ["attn.proj"], "alpha_pattern": {"attn.proj": 7, r"blocks\.0\.attn\.proj": 9}},
    ],
    ids=["rslora", "ranks", "one block", "alphas", "the first of two alphas"],
)
def test_scalings_ranks_and_single_blocks_of_peft_are_read(plain, tmp_path, options):
    model = theirs(**options)
    model.save_pretrained(tmp_path)
    assert difference(forward(merge(load_peft(plain, tmp_path)), IMAGES), model(torch_images())) < 1e-5


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_training_that_goes_on_from_a_folder_drops_out_what_it_says_and_nothing_else_does(plain, tmp_path, share):
    save_peft(jaxface.adapt(plain, "lora", rank=2, dropout=share), tmp_path)
    loaded = load_peft(plain, tmp_path)
    set_keys(loaded, jax.random.key(0), jnp.arange(3))
    kernels = [linear.kernel for _, linear in linears(loaded) if isinstance(linear.kernel, LowRank)]
    assert kernels
    assert all((kernel.keys is not None) == (share > 0) for kernel in kernels)


def test_what_cannot_be_read_or_written_is_one_line(plain, tmp_path):
    with pytest.raises(UserError, match="no LoRA or DoRA adapter to write"):
        save_peft(plain, tmp_path / "none")
    with pytest.raises(UserError, match=r"TaskLowRank has no place in PEFT"):
        save_peft(jaxface.adapt(plain, "mtlora", rank=2, num_tasks=2), tmp_path / "none")
    two = jaxface.adapt(plain, "lora", rank=2, dropout=0.1, targets=r".*\.attn\.out")
    with pytest.raises(UserError, match=r"dropouts 0\.1, 0\.2: PEFT's folder has one"):
        save_peft(jaxface.adapt(two, "lora", rank=2, dropout=0.2, targets=r".*\.mlp\.fc"), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(UserError, match=r"adapter_config\.json: cannot be read"):
        load_peft(plain, tmp_path)
    folder = tmp_path / "adapter"
    save_peft(jaxface.adapt(plain, "lora", rank=2), folder)
    with pytest.raises(UserError, match="adapted already"):
        load_peft(jaxface.adapt(plain, "lora", rank=2), folder)
    config = json.loads((folder / CONFIG).read_text())
    for key, value, message in [
        ("peft_type", "LOHA", "peft_type is 'LOHA'; expected 'LORA'"),
        ("bias", "all", "bias is 'all'; expected 'none'"),
        ("use_dora", True, "expected lora_A, lora_B, lora_magnitude_vector"),
    ]:
        (folder / CONFIG).write_text(json.dumps(config | {key: value}))
        with pytest.raises(UserError, match=message):
            load_peft(plain, folder)
