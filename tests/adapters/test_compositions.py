"""What is put together: adapters on one encoder after another, on kernels in fewer bits, on both towers, and several at once."""

import jax
import numpy as np
import pytest
from flax import nnx

import jaxface
from jaxface.adapters.adapt import unload
from jaxface.adapters.low_rank import LowRank
from jaxface.adapters.methods import METHODS
from jaxface.adapters.places import linears
from jaxface.adapters.quantized import NF4, Int8, quantize
from jaxface.errors import UserError
from jaxface.models.encoder import Encoder
from jaxface.models.tree import arrays_of, flatten
from jaxface.models.variants import TextConfig
from small_models import KINDS
from tiny_encoder import random_images, randomized, tiny_clip, tiny_encoder

IMAGES = random_images(3)
TEXT = TextConfig(width=32, depth=3, heads=4, context=6, output=24, vocabulary=40)
IDS = np.array([[38, 5, 9, 39, 0, 0], [38, 7, 39, 0, 0, 0]])


@jax.jit
def forward(model, x):
    return model(x)


def close(a, b, tolerance=1e-5):
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and np.abs(a - b).max() <= tolerance * np.abs(b).max()


def changed(encoder, seed=0):
    """The adapted encoder with noise in its adapters."""
    arrays, structure = flatten(encoder)
    rng = np.random.default_rng(seed)
    noisy = {
        n: jax.device_put(np.asarray(v) + np.asarray(0.1 * rng.normal(size=v.shape), v.dtype))
        for n, v in arrays.items()
        if n.endswith((".a", ".b", ".magnitude"))
    }
    return structure.build(arrays, noisy)


def pieces_in(memory, arrays):
    """Names of arrays that lie within none of these."""
    spans = [(leaf.unsafe_buffer_pointer(), leaf.nbytes) for leaf in memory.values()]
    return [n for n, v in arrays.items() if not any(at <= v.unsafe_buffer_pointer() < at + size for at, size in spans)]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        *((name, {}) for name in METHODS if name != "full"),
        ("full", {}),
        ("lora", {"blocks": "1"}),
        ("mtlora", {"blocks": "0,2", "num_tasks": 3}),
    ],
    ids=str,
)
def test_no_frozen_array_is_copied_by_any_method(method, options):
    encoder = tiny_encoder()
    adapted = jaxface.adapt(encoder, method, **({"rank": 2} | options if method in ("lora", "dora", "mtlora") else options))
    before = arrays_of(encoder)
    new = pieces_in(before, arrays_of(adapted))
    assert not [n for n in new if not n.endswith((".a", ".b", ".magnitude", ".base_norms")) and (n != "pool.probe" or method != "mtlora")]


def test_what_is_donated_in_place_of_a_shared_array_leaves_the_encoder_as_it_was():
    encoder = tiny_encoder()
    before = {n: np.array(v) for n, v in arrays_of(encoder).items()}
    adapted = arrays_of(jaxface.adapt(encoder, "lora", rank=2, blocks="1"))
    cut = {n: v for n, v in adapted.items() if n.startswith("stages.1") and n.endswith((".base", ".scale", ".bias"))}
    jax.block_until_ready(jax.jit(lambda x: {n: 0 * v - 1 for n, v in x.items()}, donate_argnums=0)(cut))
    assert all((np.asarray(v) == before[n]).all() for n, v in arrays_of(encoder).items())


@pytest.mark.parametrize("kind", [k for k in KINDS if not KINDS[k].vision.pool or k == "core"])
@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_adapts_every_kind_of_encoder(kind, method):
    config = KINDS[kind].vision
    encoder = nnx.eval_shape(lambda: jaxface.adapt(Encoder(config, rngs=nnx.Rngs(0)), method))
    assert (encoder.pool is not None) == (config.pool or method.startswith("ap")) == encoder.config.pool


def test_targets_say_which_linears_are_adapted():
    encoder = jaxface.adapt(tiny_encoder(), "dora", rank=2, targets=r"blocks\.(0|2)\.attn\.qkv|blocks\.\d\.mlp\.fc|pool\.kv|projection")
    adapted = [name for name, linear in linears(encoder) if isinstance(linear.kernel, LowRank)]
    stages = [
        f"stages.{i}.{name}" for i, names in enumerate((("attn.qkv", "mlp.fc"), ("mlp.fc",), ("attn.qkv", "mlp.fc"))) for name in names
    ]
    assert sorted(adapted) == sorted(["pool.kv", "projection", *stages])
    assert close(forward(encoder, IMAGES), forward(tiny_encoder(), IMAGES))
    assert close(forward(jaxface.merge(changed(encoder)), IMAGES), forward(changed(encoder), IMAGES))
    for targets, message in (("attn", "targets 'attn': no linear has that name"), ("(", "expected a regular expression")):
        with pytest.raises(UserError, match=message):
            jaxface.adapt(tiny_encoder(), "lora", targets=targets)


def test_an_adapted_encoder_is_adapted_again_only_when_merged_and_gives_its_frozen_kernels_back():
    plain = tiny_encoder()
    encoder = changed(jaxface.adapt(plain, "lora", rank=2))
    with pytest.raises(UserError, match=r"adapted already \(LowRank\): merge it first"):
        jaxface.adapt(encoder, "dora")
    again = jaxface.adapt(jaxface.merge(encoder), "dora", rank=2)
    assert close(forward(again, IMAGES), forward(encoder, IMAGES))
    assert close(forward(unload(encoder), IMAGES), forward(plain, IMAGES), 0)
    mixed = jaxface.adapt(plain, "mtlora", rank=2, num_tasks=2)
    with pytest.raises(UserError, match="merge the encoder first"):
        jaxface.adapt(mixed, "ft4")


def test_both_towers_of_a_clip_are_adapted_or_one_of_them(tmp_path):
    clip = randomized(tiny_clip(TEXT))
    similarity = jax.jit(lambda clip: clip(IMAGES, IDS))
    both = jaxface.adapt(clip, "dora", rank=2, init="olora")
    assert close(similarity(both), similarity(clip))
    assert not close(similarity(changed(both)), similarity(clip))
    assert close(similarity(jaxface.merge(changed(both))), similarity(changed(both)))
    clip.text = jaxface.adapt(clip.text, "lora", rank=2, blocks="0")
    assert [isinstance(stage.attn.out.kernel, LowRank) for stage in clip.text.stages] == [True, False]
    with pytest.raises(UserError, match="a text tower does not have"):
        jaxface.adapt(clip.text, "ap")
    with pytest.raises(UserError, match=r"stages\.0\.attn\.out: a kernel of kind LowRank has no place in a checkpoint"):
        jaxface.save_weights(clip, tmp_path / "clip.safetensors")
    tasks = jaxface.adapt(tiny_clip(TEXT).text, "mtlora", rank=2, num_tasks=2)
    assert forward(tasks, IDS).shape == (2, 2, 24)


@pytest.mark.parametrize("kind", [Int8, NF4])
def test_peft_files_go_onto_kernels_in_fewer_bits_and_come_from_there(tmp_path, kind):
    encoder = changed(jaxface.adapt(tiny_encoder(), "dora", rank=2, targets=r"blocks\.1\..*|pool\.kv"))
    jaxface.save_peft(encoder, tmp_path / "a")
    base = tiny_encoder()
    quantize(base, {Int8: "int8", NF4: "nf4"}[kind])
    loaded = jaxface.load_peft(base, tmp_path / "a")
    assert isinstance(loaded.pool.kv.kernel.base, kind)
    rounded = jaxface.load_peft(jaxface.merge(base), tmp_path / "a")
    assert close(forward(loaded, IMAGES), forward(rounded, IMAGES))
    jaxface.save_peft(loaded, tmp_path / "b")
    assert close(forward(jaxface.load_peft(base, tmp_path / "b"), IMAGES), forward(loaded, IMAGES))
    again = jaxface.adapt(base, "lora", rank=2)
    assert isinstance(again.pool.out.kernel.base, kind)
    assert close(forward(again, IMAGES), forward(base, IMAGES))


def test_peft_folders_go_onto_encoders_with_pools_per_task_but_their_pools_into_none(tmp_path):
    pools = jaxface.adapt(tiny_encoder(), "ap_per_task", num_tasks=2)
    with pytest.raises(UserError, match="no LoRA or DoRA adapter to write"):
        jaxface.save_peft(pools, tmp_path / "a")
    jaxface.save_peft(changed(jaxface.adapt(tiny_encoder(), "lora", rank=2, targets=r"blocks\..*", dropout=0.25)), tmp_path / "b")
    loaded = jaxface.load_peft(pools, tmp_path / "b")
    assert loaded.stages[0].mlp.fc.kernel.dropout == 0.25  # training goes on with it
    assert forward(loaded, IMAGES).shape == (2, 3, 24)
    jaxface.save_peft(jaxface.adapt(tiny_encoder(), "lora", rank=2), tmp_path / "c")
    with pytest.raises(UserError, match=r"has tensors of attn_pool\.\w+"):
        jaxface.load_peft(pools, tmp_path / "c")


@pytest.mark.parametrize("word", ["full", "int8"])
def test_adapters_of_different_blocks_methods_and_linears_share_an_encoder(word):
    base = tiny_encoder()
    quantize(base, word)
    parts = {
        "a": changed(jaxface.adapt(base, "lora", rank=2, blocks="0"), 1),
        "b": changed(jaxface.adapt(base, "dora", rank=3, blocks="1-2", pool_inputs=True), 2),
        "c": changed(jaxface.adapt(base, "lora", rank=1, init="pissa", targets=r"projection|blocks\.1\.mlp\..*"), 3),
    }
    stacked = jaxface.stack_adapters(parts)
    together = forward(stacked.pick(["c", "a", "b"]), IMAGES)
    for row, name in enumerate(("c", "a", "b")):
        assert close(together[row], forward(parts[name], IMAGES)[row]), name
        assert close(forward(stacked.only(name), IMAGES), forward(parts[name], IMAGES))
    assert close(forward(stacked.blend({"b": 1.0}), IMAGES), forward(parts["b"], IMAGES), 1e-4)


def test_adapters_that_cannot_share_an_encoder_are_named():
    base = tiny_encoder()
    lora = jaxface.adapt(base, "lora", rank=2)
    with pytest.raises(UserError, match="adapter 'b' has a kernel of kind TaskLowRank"):
        jaxface.stack_adapters({"a": lora, "b": jaxface.adapt(base, "mtlora", rank=2)})
    other = jaxface.adapt(base, "lora", rank=2)
    other.norm_pre.bias[...] = other.norm_pre.bias[...] + 1
    with pytest.raises(UserError, match=r"adapter 'b' stands on another norm_pre\.bias than 'a'"):
        jaxface.stack_adapters({"a": lora, "b": other})
    with pytest.raises(UserError, match="a, b: no encoder of these has an adapter"):
        jaxface.stack_adapters({"a": base, "b": jaxface.merge(base)})
    with_base = jaxface.stack_adapters({"none": base, "a": changed(lora)})
    assert close(forward(with_base.pick(["a", "none", "none"]), IMAGES)[1:], forward(base, IMAGES)[1:])
    quantize(base, "int8")
    with pytest.raises(UserError, match="adapter 'b' stands on another"):
        jaxface.stack_adapters({"a": lora, "b": jaxface.adapt(base, "lora", rank=2)})
