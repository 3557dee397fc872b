"""The families beside the Perception Encoder against timm, on small configurations with every parameter random."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from parity.test_parity import assert_as_exact_as_the_original, relative_error, run

from jaxface.data.framing import FRAMINGS
from jaxface.models.config import PIXELS
from jaxface.models.tree import arrays_of
from jaxface.models.variants import VARIANTS
from jaxface.originals.reference import build_original, import_torch
from jaxface.weights import load_encoder
from small_models import FAMILIES, random_images, random_tensors
from weights_convert.checkpoint import convert, read_checkpoint, write_checkpoint
from weights_convert.names import timm_name

torch = import_torch()[0]
METAS = {"DINOv3": "eva", "DINOv3+": "eva", "DINOv2": "vision_transformer", "DINOv2 g": "vision_transformer"}
FEW = {"xla_backend_optimization_level": 0}


def small_encoder(folder, kind, **options):
    write_checkpoint(folder / "model.safetensors", FAMILIES[kind], random_tensors(FAMILIES[kind]))
    return load_encoder(folder / "model.safetensors", **options)


@jax.jit
def run_ours(encoder, images):
    states = encoder.hidden_states(images)
    tokens = states[-1] if encoder.norm_post is None else encoder.norm_post(states[-1])
    return states[1:], tokens, encoder.pooled(tokens)


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_block_the_tokens_and_the_features_equal_timms_at_any_size(kind, tmp_path):
    encoder, towers = small_encoder(tmp_path, kind), FAMILIES[kind]
    original = build_original("timm", towers, random_tensors(towers))
    side = towers.vision.image_size
    results = {}
    for size in ((side, side), (24, 40)):
        images = random_images(8, *size)
        original.modules[0].float()
        single = run(original, images, torch.float32)
        original.modules[0].double()
        exact = run(original, images, torch.float64)
        states, tokens, features = run_ours(encoder, images)
        for ours, theirs, double in zip([*states, tokens, features], single, exact, strict=True):
            assert_as_exact_as_the_original(ours, theirs, double)
        results[size] = exact[-1]
    half = small_encoder(tmp_path, kind, dtype="bfloat16")
    images = random_images(8, side, side)
    assert relative_error(jax.jit(half.__call__, compiler_options=FEW)(images), results[side, side]) <= 2e-2


def test_pixels_and_filters_are_those_that_timm_says_of_its_models():
    models = import_torch("timm.models")[1]
    other = {"OpenCLIP-L14-224", "OpenCLIP-L14-336"}  # whose weights differ in it, see `jaxface.models.families.clip`
    for variant, c in VARIANTS.items():
        if not variant.startswith("PE") and (name := timm_name(variant)) and variant not in other:
            said = models.get_pretrained_cfg(name)
            assert (tuple(said.mean), tuple(said.std)) == PIXELS[c.pixels], variant
            assert FRAMINGS[c.framing].pillow.name == said.interpolation.upper(), variant


@pytest.mark.parametrize("kind", FAMILIES)
def test_timms_files_are_recognised_and_come_back_to_the_byte(kind, tmp_path):
    towers = FAMILIES[kind]
    theirs, ours, again = (tmp_path / name for name in ("timm.safetensors", "ours.safetensors", "again.safetensors"))
    write_checkpoint(theirs, towers, random_tensors(towers), layout="timm")
    convert(theirs, ours)
    convert(ours, again, layout="timm")
    assert theirs.read_bytes() == again.read_bytes()
    arrays = (arrays_of(load_encoder(path)).values() for path in (ours, theirs))
    assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(*arrays, strict=True))


@pytest.mark.parametrize(("kind", "layout", "module"), [(k, f"meta_{k[:6].lower()}", m) for k, m in METAS.items()])
def test_metas_own_files_are_read_by_timm_as_we_read_them_and_come_back_to_the_byte(kind, layout, module, tmp_path):
    towers, random = FAMILIES[kind], np.random.RandomState(3)
    towers = replace(towers, vision=replace(towers.vision, class_position=True))
    tensors = random_tensors(towers)
    carried = {"visual.mask_token": random.randn(1, 64)}
    if towers.vision.qkv_bias == "no key":  # a bias of the keys that a mask takes away, and the norm of what only training saw
        carried |= {f"visual.blocks.{i}.attn.qkv.key_bias": random.randn(64) for i in range(towers.vision.depth)}
        carried |= {f"visual.local_norm.{part}": random.randn(64) for part in ("scale", "bias")}
    theirs, ours, again = (tmp_path / name for name in ("dino.pth", "ours.safetensors", "again.pth"))
    write_checkpoint(theirs, towers, tensors | {name: array.astype(np.float32) for name, array in carried.items()}, layout=layout)
    convert(theirs, ours, config=towers)
    convert(ours, again, layout=layout)
    assert theirs.read_bytes() == again.read_bytes()
    state = torch.load(theirs)
    assert {"mask_token", "storage_tokens" if layout == "meta_dinov3" else "pos_embed"} <= state.keys()
    if layout == "meta_dinov3":
        assert state["blocks.0.attn.qkv.bias"].shape == state["blocks.0.attn.qkv.bias_mask"].shape == (192,)
        torch.save(state | {"projectors.a.weight": torch.zeros(3)}, theirs)  # of a distillation's heads
    assert read_checkpoint(theirs, config=towers).left_out == (("projectors.a.weight",) if layout == "meta_dinov3" else ())
    original = build_original("timm", FAMILIES[kind], random_tensors(FAMILIES[kind]))
    model = original.modules[0]
    model.load_state_dict(import_torch(f"timm.models.{module}")[1].checkpoint_filter_fn(state, model))
    images = random_images(2, 32, 32)
    with torch.no_grad():
        wanted = original.tokens(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert relative_error(jax.jit(lambda encoder: encoder.tokens(images))(load_encoder(theirs, config=towers)), wanted) < 3e-6
    convert(theirs, tmp_path / "timm.safetensors", config=towers, layout="timm")
    half = tmp_path / "bf16.pth"
    convert(tmp_path / "timm.safetensors", half, layout=layout, dtype="bfloat16")  # where nothing was carried
    assert torch.load(half).keys() >= state.keys() - {"local_cls_norm.weight", "local_cls_norm.bias"}
