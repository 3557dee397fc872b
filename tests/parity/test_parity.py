"""The encoders against timm and open_clip, run live on the same random parameters."""

from functools import partial

import jax
import numpy as np
import pytest

from jaxface.models.config import PIXELS
from jaxface.models.variants import VARIANTS
from jaxface.originals.reference import import_torch, timm_vision
from small_models import KINDS, OPTIMISED, random_ids
from weights_convert.layouts import LAYOUTS, decode, table
from weights_convert.names import timm_name
from weights_convert.towers import Towers

torch = import_torch()[0]


def relative_error(value, exact):
    return np.abs(np.asarray(value, np.float64) - exact).max() / np.abs(exact).max()


def assert_as_exact_as_the_original(ours, original, exact):
    """2e-6, and twice the original's own distance from its double precision."""
    error = relative_error(ours, exact)
    assert error <= 2e-6
    assert error <= 2 * relative_error(original, exact)


def torch_images(images, dtype):
    return torch.from_numpy(images).permute(0, 3, 1, 2).to(dtype)


def run(original, images, dtype):
    """States after every block, tokens and features."""
    states = []
    hooks = [block.register_forward_hook(lambda _, __, result: states.append(result)) for block in original.blocks]
    with torch.no_grad():
        features = original.vision(torch_images(images, dtype))
        tokens = original.tokens(torch_images(images, dtype))
    for hook in hooks:
        hook.remove()
    return [*(state.numpy() for state in states[: len(original.blocks)]), tokens.numpy(), features.numpy()]


def run_ours(encoder, images):
    states = encoder.hidden_states(images)
    tokens = states[-1] if encoder.norm_post is None else encoder.norm_post(states[-1])
    return states[1:], tokens, encoder.pooled(tokens)


RUN_OURS = {"in a hurry": jax.jit(run_ours), "optimised": jax.jit(run_ours, compiler_options=OPTIMISED)}
CASES = [(kind, "in a hurry") for kind in KINDS] + [(kind, "optimised") for kind in ("core with heads of 24 channels", "lang")]


@partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles in half the time
def run_quickly_compiled(encoder, images):
    return encoder(images)


@jax.jit
def run_both(clip, images, ids):
    return clip.encode_image(images), clip.encode_text(ids), clip(images, ids)


@pytest.mark.parametrize(("kind", "compiled"), CASES)
def test_every_block_the_tokens_and_the_features_equal_timms(kind, compiled, encoder, original, images):
    states, tokens, features = RUN_OURS[compiled](encoder(kind), images(kind))
    single = run(original("timm", kind, "float"), images(kind), torch.float32)
    exact = run(original("timm", kind, "double"), images(kind), torch.float64)
    for ours, theirs, double in zip([*states, tokens, features], single, exact, strict=True):
        assert_as_exact_as_the_original(ours, theirs, double)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_stays_near_the_exact_features(kind, encoder, original, images):
    features = np.asarray(run_quickly_compiled(encoder(kind, "bfloat16"), images(kind)), np.float64)
    exact = run(original("timm", kind, "double"), images(kind), torch.float64)[-1]
    assert relative_error(features, exact) <= 2e-2
    assert np.vdot(features, exact) / np.linalg.norm(features) / np.linalg.norm(exact) > 0.9999


@pytest.mark.parametrize("kind", [kind for kind, towers in KINDS.items() if towers.text])
def test_both_towers_equal_open_clips(kind, clip, original, images):
    ids = random_ids(12, KINDS[kind])
    image, text, logits = run_both(clip(kind), images(kind), ids)
    results = {}
    for precision, dtype in (("float", torch.float32), ("double", torch.float64)):
        theirs = original("open_clip", kind, precision)
        with torch.no_grad():
            arguments = torch_images(images(kind), dtype), torch.from_numpy(ids).long()
            results[precision] = theirs.vision(arguments[0]).numpy(), theirs.encode_text(arguments[1]).numpy()
            exact_logits = theirs.modules[0].get_logits(*arguments)[0].numpy()
    for value, theirs, exact in zip((image, text), results["float"], results["double"], strict=True):
        assert_as_exact_as_the_original(value, theirs, exact)
    assert relative_error(logits, exact_logits) <= 2e-6


@pytest.mark.parametrize("variant", {timm_name(name): name for name in VARIANTS if timm_name(name)}.values())
def test_every_variant_has_the_tensors_that_timm_registers_under_its_name(variant):
    config = VARIANTS[variant]
    with torch.device("meta"):
        model = timm_vision(config)
    theirs = {name: np.broadcast_to(np.float32(0), tensor.shape) for name, tensor in model.state_dict().items()}
    ours, surplus = decode(table(LAYOUTS["timm"], ("", None)), theirs)
    ours.pop("visual.projection.bias", None)
    assert not surplus
    assert {name: array.shape for name, array in ours.items()} == Towers(config).shapes()
    heads = {block.attn.num_heads for block in model.blocks}
    assert heads == {config.heads}
    assert not config.pool or model.attn_pool.num_heads == config.pool_heads
    assert {module.eps for module in model.modules() if isinstance(module, torch.nn.LayerNorm)} == {config.epsilon}
    if variant.startswith("OpenCLIP"):  # whose weights differ in this, by who trained them
        return
    assert [tuple(values) for values in (model.default_cfg["mean"], model.default_cfg["std"])] == list(PIXELS[config.pixels])
