"""LoRA and DoRA on the families beside the Perception Encoder, against PEFT on timm's models, every parameter random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from peft_on_timm import Static, peft, torch

import jaxface
from jaxface.adapters.low_rank import LowRank
from jaxface.adapters.mixed_batch import stack_adapters
from jaxface.adapters.peft_format import MODULES, adapter_updates
from jaxface.adapters.places import linears
from jaxface.adapters.quantized import Quantized, quantize
from jaxface.models.tree import flatten
from jaxface.originals.reference import build_original
from jaxface.weights import load_encoder
from small_models import FAMILIES, random_images, random_tensors
from weights_convert.checkpoint import write_checkpoint

IMAGES = random_images(3, 32, 32)
EVERYTHING = {"rank": 3, "pool_inputs": True}


@jax.jit
def run(train, rest, weight):
    structure, rest = rest
    y, pull = jax.vjp(lambda train: structure.value.build(train, rest)(jnp.asarray(IMAGES)), train)
    return y, pull(weight)[0]


def difference(ours, expected):
    expected = expected.detach().numpy()
    return float(np.abs(np.asarray(ours) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(
    ("kind", "method"),
    [("DINOv3", "lora"), *((kind, "dora") for kind in ("DINOv3 with biases", "DINOv3+", "DINOv2 g", "CLIP", "SigLIP"))],
)
def test_outputs_and_gradients_of_a_written_folder_equal_pefts(kind, method, tmp_path):
    write_checkpoint(tmp_path / "model.safetensors", FAMILIES[kind], random_tensors(FAMILIES[kind]))
    plain = load_encoder(tmp_path / "model.safetensors")
    arrays, structure = flatten(jaxface.adapt(plain, method, **EVERYTHING))
    random = np.random.default_rng(0)
    train = {
        name: jax.device_put(np.asarray(np.asarray(value) + 0.1 * random.normal(size=value.shape), np.float32))
        for name, value in arrays.items()
        if name.endswith((".kernel.a", ".kernel.b", ".kernel.magnitude"))
    }
    rest = {name: value for name, value in arrays.items() if name not in train}
    encoder = structure.build(rest, train)
    jaxface.save_peft(encoder, tmp_path / "adapter")
    original = build_original("timm", FAMILIES[kind], random_tensors(FAMILIES[kind]))  # PEFT puts its layers into the model
    model = peft.PeftModel.from_pretrained(original.modules[0], str(tmp_path / "adapter"), is_trainable=True).eval()
    want = original.vision(torch.from_numpy(IMAGES).permute(0, 3, 1, 2))
    weight = torch.randn(want.shape, generator=torch.Generator().manual_seed(1))
    (want * weight).sum().backward()
    y, gradients = jax.tree.map(np.asarray, run(train, (Static(structure), rest), weight.numpy()))
    assert difference(y, want) < 1e-5
    theirs = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    kinds = {"a": "lora_A.default.weight", "b": "lora_B.default.weight", "magnitude": "lora_magnitude_vector.default.weight"}
    assert len(theirs) == len(adapter_updates(encoder)) * (3 if method == "dora" else 2)
    for name, gradient in gradients.items():
        ours, part = name.removeprefix("stages.0.").rsplit(".kernel.", 1)
        module = MODULES[ours if name.startswith("pool") else f"blocks.{{i}}.{ours}"]
        for i, got in enumerate(gradient) if "{i}" in module else [(0, gradient)]:
            assert difference(got.T, theirs[f"base_model.model.{module.format(i=i)}.{kinds[part]}"]) < 1e-5, (name, i)
    merged = jax.jit(lambda encoder, images: encoder(images))(jaxface.merge(jaxface.load_peft(plain, tmp_path / "adapter")), IMAGES)
    assert difference(merged, want) < 1e-5


def dense(kernel):
    """What an adapted kernel stands for, worked out on plain arrays: W + A B, its columns of DoRA's lengths."""
    base = getattr(kernel, "base", kernel)
    w = np.asarray(base.merge() if isinstance(base, Quantized) else base[...], np.float64)
    if base is kernel:
        return w
    w = w + np.asarray(kernel.a[...], np.float64) @ np.asarray(kernel.b[...], np.float64)
    return w if kernel.magnitude is None else w * (np.asarray(kernel.magnitude[...]) / np.linalg.norm(w, axis=-2))[..., None, :]


@pytest.mark.parametrize(("kind", "base"), [("DINOv3+", "int8"), ("SigLIP", "nf4")])
def test_images_of_one_batch_have_each_its_own_adapter_on_rounded_kernels(kind, base, tmp_path):
    write_checkpoint(tmp_path / "model.safetensors", FAMILIES[kind], random_tensors(FAMILIES[kind]))
    plain, random = load_encoder(tmp_path / "model.safetensors"), np.random.default_rng(0)
    adapters = {name: jaxface.adapt(plain, name, rank=3) for name in ("lora", "dora")}
    for encoder in adapters.values():
        quantize(encoder, base)
        for _, linear in linears(encoder):
            if isinstance(linear.kernel, LowRank):
                linear.kernel.b[...] = jax.device_put((0.1 * random.normal(size=linear.kernel.b.shape)).astype(np.float32))
    run = jax.jit(lambda encoder, images: encoder(images))
    mixed = run(stack_adapters(adapters).pick(["dora", "lora", "dora"]), IMAGES)
    for rows, name in ((np.array([0, 2]), "dora"), (np.array([1]), "lora")):
        kernels = {path: linear.kernel for path, linear in linears(adapters[name])}
        whole = load_encoder(tmp_path / "model.safetensors")
        for path, linear in linears(whole):
            linear.kernel = nnx.Param(jax.device_put(dense(kernels[path]).astype(np.float32)))
        assert sum(isinstance(kernel, LowRank) for kernel in kernels.values()) >= 4
        want = np.asarray(run(whole, IMAGES))[rows]
        assert np.abs(np.asarray(mixed)[rows] - want).max() < 2e-5 * np.abs(want).max()
