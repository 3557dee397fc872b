from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxface
from jaxface.adapters.quantized import quantize
from jaxface.errors import UserError
from jaxface.models.clip import Clip
from jaxface.models.encoder import Encoder, split_stages
from jaxface.models.families import clip
from jaxface.models.tree import arrays_of
from jaxface.models.variants import TEXT_VARIANTS, VARIANTS, EncoderConfig, TextConfig
from jaxface.weights import load_clip, load_encoder
from small_models import KINDS, random_tensors
from weights_convert.checkpoint import convert, layout_tensors, read_checkpoint, unplaced, write_checkpoint
from weights_convert.inference import Ambiguous, infer
from weights_convert.layouts import LAYOUTS
from weights_convert.towers import Heads, Towers


def parameters(shapes):
    return sum(int(np.prod(shape)) for shape in shapes.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_tensors_of_a_checkpoint_are_the_arrays_of_the_module(kind):
    towers = KINDS[kind]
    encoder = nnx.eval_shape(lambda: Encoder(towers.vision, rngs=nnx.Rngs(0)))
    stacked = layout_tensors("jaxface", Towers(towers.vision), random_tensors(Towers(towers.vision)))
    assert {n.replace("stages.0", "blocks"): a.shape for n, a in arrays_of(encoder).items()} == {n: a.shape for n, a in stacked.items()}
    if towers.text:
        clip = nnx.eval_shape(lambda: Clip(towers.vision, towers.text, rngs=nnx.Rngs(0)))
        stacked = layout_tensors("jaxface", towers, random_tensors(towers))
        assert {n.replace("stages.0", "blocks"): a.shape for n, a in arrays_of(clip).items()} == {n: a.shape for n, a in stacked.items()}


def test_the_large_model_has_the_published_number_of_parameters():
    both = Towers(VARIANTS["PE-Core-L14-336"], TEXT_VARIANTS["PE-Core-L14-336"]).shapes()
    vision = {name: shape for name, shape in both.items() if name.startswith("visual.")}
    assert parameters(vision) == 317_151_232
    assert parameters({name: shape for name, shape in vision.items() if ".blocks.7." in name}) == 12_596_224
    assert parameters({name: shape for name, shape in vision.items() if ".pool." in name}) == 12_595_200
    assert parameters(both) - parameters(vision) == 353_986_561
    assert parameters(both) == 671_137_793


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_recognised_from_its_tensors_or_those_are_named_that_have_them(variant):
    towers = Towers(VARIANTS[variant], TEXT_VARIANTS.get(variant) if variant in TEXT_VARIANTS else None)
    zero = np.zeros((), np.float32)
    tensors = {name: np.broadcast_to(zero, shape) for name, shape in towers.shapes().items()}
    if variant not in clip.VISION or variant == "OpenCLIP-g14-224":
        assert infer(tensors) == infer(tensors, projected=True) == towers
    else:
        with pytest.raises(Ambiguous, match=rf"\b{variant}\b.* have the same tensors and differ in activation(, pixels)?: say which"):
            infer(tensors)


@st.composite
def small_towers(draw):
    """Any shape that the family's rules allow, small."""
    heads = draw(st.integers(1, 3))
    pool = draw(st.booleans())
    width = heads * 4 * draw(st.integers(1, 3))
    patch = draw(st.integers(1, 3))
    vision = EncoderConfig(
        width=width,
        depth=draw(st.integers(1, 3)),
        heads=heads,
        mlp_width=draw(st.integers(1, 40)),
        patch=patch,
        image_size=patch * draw(st.integers(1, 4)),
        class_token=draw(st.booleans()),
        pool=pool,
        layer_scale=draw(st.booleans()),
        norm_post=pool or draw(st.booleans()),
        output=draw(st.integers(1, 9)) if pool else None,
        pool_heads=draw(st.sampled_from([heads, 1, 4])),
    )
    text = TextConfig(draw(st.integers(1, 3)) * 4, draw(st.integers(1, 2)), 2, 5, vision.output or 1, 11)
    return Towers(vision, text if pool and draw(st.booleans()) else None)


@st.composite
def small_encoders(draw):
    """Any encoder whose configuration is valid, with every difference between families, small."""
    heads, patch = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    width, pool, flag = heads * 4 * draw(st.integers(1, 2)), draw(st.booleans()), st.booleans()
    return EncoderConfig(
        *(width, draw(st.integers(1, 2)), heads, draw(st.integers(1, 20)), patch, patch * draw(st.integers(1, 3))),
        **{"pool": pool, "output": draw(st.sampled_from([None, 5])) if pool else None, "pool_heads": heads},
        **{"pool_mlp_width": draw(st.sampled_from([None, 7])) if pool else None, "norm_post": pool or draw(flag)},
        **{name: draw(flag) for name in ("class_token", "layer_scale", "positions", "class_position", "norm_pre", "patch_bias")},
        **{"registers": draw(st.integers(0, 3)), "rope": draw(st.sampled_from(["axial", "unit", "none"]))},
        **{"qkv_bias": draw(st.sampled_from(["all", "no key", "none"])), "gate": draw(st.sampled_from(["none", "separate", "packed"]))},
    )


@settings(deadline=None, max_examples=15)
@given(vision=small_encoders(), dtype=st.sampled_from(["float32", "bfloat16"]), suffix=st.sampled_from([".pth", ".safetensors"]))
def test_an_encoder_of_any_configuration_comes_back_to_the_byte_through_every_layout_with_a_place_for_it(
    vision, dtype, suffix, tmp_path_factory
):
    towers, folder = Towers(vision), tmp_path_factory.mktemp("trip")
    start, last = folder / "ours.safetensors", folder / "again.safetensors"
    write_checkpoint(start, towers, random_tensors(towers), dtype=jnp.dtype(dtype))
    assert read_checkpoint(start).towers == towers  # as its metadata say
    for layout in LAYOUTS:
        if layout == "open_clip" or unplaced(layout, towers):
            continue
        theirs, back = folder / f"{layout}{suffix}", folder / f"{layout}2{suffix}"
        convert(start, theirs, layout=layout)
        kept = LAYOUTS.get(layout).class_position
        moved = kept is not None and vision.registers and vision.class_token and vision.positions and vision.class_position != kept
        told = replace(vision, class_position=kept) if moved else vision
        convert(theirs, last, config=told)
        convert(last, back, layout=layout)
        assert theirs.read_bytes() == back.read_bytes(), layout
        if not moved:
            tensors = (read_checkpoint(path, config=told).tensors for path in (start, last))
            mine, found = ({n: np.asarray(a) for n, a in each.items() if n in towers.shapes()} for each in tensors)
            assert mine.keys() == found.keys()
            assert all((mine[name] == found[name]).all() for name in mine), layout


@settings(deadline=None, max_examples=25)
@given(
    towers=small_towers(),
    dtype=st.sampled_from(["float32", "float16", "bfloat16", "float64"]),
    suffixes=st.lists(st.sampled_from([".pt", ".safetensors"]), min_size=4, max_size=4),
)
def test_meta_to_ours_to_timm_to_ours_to_meta_gives_back_every_byte(towers, dtype, suffixes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trip")
    vision = Towers(towers.vision)
    start = folder / f"start{suffixes[0]}"
    write_checkpoint(start, towers, random_tensors(towers), layout="meta", dtype=jnp.dtype(dtype))
    # timm's layout has no text tower; open_clip's carries both
    for through, whole in (("timm", vision), ("open_clip", towers)):
        first = folder / f"first{suffixes[0]}"
        tensors = read_checkpoint(start, config=towers).tensors
        write_checkpoint(first, whole, {name: tensors[name] for name in whole.shapes()}, layout="meta")
        path = first
        for step, layout in enumerate(("jaxface", through, "jaxface", "meta")):
            target = folder / f"{step}{suffixes[step] if step < 3 else suffixes[0]}"
            convert(path, target, layout=layout, config=whole)
            path = target
        assert path.read_bytes() == first.read_bytes()


def test_a_loaded_encoder_saved_again_is_the_same_file(tmp_path):
    towers = KINDS["core"]
    write_checkpoint(tmp_path / "a.pt", towers, random_tensors(towers), layout="meta")
    clip = jaxface.load_clip(tmp_path / "a.pt", config=towers)
    split_stages(clip.visual, -1)
    jaxface.save_weights(clip, tmp_path / "b.pt", layout="meta")
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    encoder = jaxface.load_encoder(tmp_path / "a.pt", config=towers)
    jaxface.save_weights(encoder, tmp_path / "c.safetensors", layout="timm")
    assert read_checkpoint(tmp_path / "c.safetensors").towers == Towers(towers.vision)


def test_the_metadata_tell_the_head_counts_that_tensors_cannot(tmp_path):
    towers = KINDS["core"]
    write_checkpoint(tmp_path / "a.safetensors", towers, random_tensors(towers))
    assert read_checkpoint(tmp_path / "a.safetensors").towers == towers
    convert(tmp_path / "a.safetensors", tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt: width 64 is none of the variants' \(.*128, 192, .*\): tell the number of heads"):
        read_checkpoint(tmp_path / "a.pt")
    assert read_checkpoint(tmp_path / "a.pt", heads=Heads(4, 8, 4)).towers == towers


def test_arrays_are_float32_unless_told_otherwise(tmp_path):
    towers = KINDS["spatial"]
    write_checkpoint(tmp_path / "a.safetensors", towers, random_tensors(towers), dtype=jnp.bfloat16)
    assert {array.dtype for array in arrays_of(jaxface.load_encoder(tmp_path / "a.safetensors")).values()} == {jnp.dtype("float32")}
    loaded = jaxface.load_encoder(tmp_path / "a.safetensors", dtype=jnp.bfloat16)
    assert {array.dtype for array in arrays_of(loaded).values()} == {jnp.dtype("bfloat16")}


def test_a_vision_tower_alone_is_no_clip(tmp_path):
    towers = KINDS["spatial"]
    write_checkpoint(tmp_path / "a.safetensors", towers, random_tensors(towers))
    with pytest.raises(UserError, match="vision tower alone"):
        jaxface.load_clip(tmp_path / "a.safetensors")


def test_a_text_longer_than_the_context_is_refused(tmp_path):
    towers = KINDS["core"]
    write_checkpoint(tmp_path / "a.safetensors", towers, random_tensors(towers))
    with pytest.raises(UserError, match="at most 12"):
        jaxface.load_clip(tmp_path / "a.safetensors").encode_text(np.zeros((1, 13), np.int32))


def test_a_name_that_the_package_lacks_is_an_attribute_error():
    with pytest.raises(AttributeError, match="load_encodr"):
        jaxface.load_encodr  # noqa: B018
    assert {"load_encoder", "tokenize"} <= set(dir(jaxface))


def test_a_writer_writes_every_array_or_nothing(tmp_path):
    clip = load_clip(written(tmp_path / "clip.safetensors", "core"))
    adapted, eight = jaxface.adapt(clip, "lora", rank=2), jaxface.merge(clip).visual
    quantize(eight, "int8")
    for model, layout, message in (
        (adapted, "jaxface", r"pool\.mlp\.fc: a kernel of kind LowRank has no place in a checkpoint: write jaxface.merge"),
        (adapted.visual, "meta", "kind LowRank"),
        (eight, "timm", "kind Int8"),
        (jaxface.adapt(clip.visual, "mtlora", rank=2, num_tasks=2), "jaxface", "kind TaskLowRank"),
        (clip, "timm", "layout timm has no place for a text tower: write clip.visual"),
    ):
        with pytest.raises(UserError, match=message):
            jaxface.save_weights(model, tmp_path / "no.safetensors", layout=layout)
        assert not (tmp_path / "no.safetensors").exists()
    towers = KINDS["core"]
    for spoilt, message in (
        ({"visual.more": np.zeros(3, np.float32)}, "1 tensor too many: visual.more"),
        ({"logit_scale": np.zeros(2)}, "wrong shape"),
    ):
        with pytest.raises(UserError, match=message):
            write_checkpoint(tmp_path / "no.pt", towers, random_tensors(towers) | spoilt)
    jaxface.save_weights(jaxface.merge(adapted), tmp_path / "merged.safetensors")
    pairs = arrays_of(load_clip(tmp_path / "merged.safetensors")).items()
    assert all(np.array_equal(array, arrays_of(clip)[name]) for name, array in pairs)
    pooled = jaxface.adapt(load_encoder(written(tmp_path / "lang.safetensors", "lang")), "ap")
    jaxface.save_weights(pooled, tmp_path / "pooled.safetensors")
    assert arrays_of(load_encoder(tmp_path / "pooled.safetensors")).keys() == arrays_of(pooled).keys()


def written(path, kind):
    write_checkpoint(path, KINDS[kind], random_tensors(KINDS[kind]))
    return path


@pytest.mark.parametrize("layout", ["timm", "meta_dinov3", "hf_dinov3", "jaxface"])
def test_a_file_of_another_family_is_named_for_what_it_is(layout, tmp_path):
    towers, zero = Towers(VARIANTS["EUPE-T16"]), np.zeros((), jnp.bfloat16)
    tensors = {name: np.broadcast_to(zero, shape) for name, shape in towers.shapes().items()}
    write_checkpoint(tmp_path / "eupe.pth", towers, tensors, layout=layout)
    for wanted in ("PE-Core-T16-384", "DINOv2-S14", "SigLIP-B16-224", "DINOv3-S16"):
        with pytest.raises(UserError, match=rf"eupe.pth: its tensors are those of EUPE-T16 \({layout}\), and what it must be is {wanted}$"):
            read_checkpoint(tmp_path / "eupe.pth", config=wanted)
    assert read_checkpoint(tmp_path / "eupe.pth").towers.name == "EUPE-T16"
