"""Files as Hugging Face transformers writes them: answers of its models, and the same file again."""

from dataclasses import replace

import jax
import pytest
from parity.test_parity import assert_as_exact_as_the_original

from jaxface.models.variants import TextConfig
from jaxface.originals.reference import import_torch, normalised
from jaxface.weights import load_clip, load_encoder
from small_models import FAMILIES, random_ids, random_images
from weights_convert.checkpoint import convert
from weights_convert.towers import Heads, Towers

torch, transformers, safetensors_torch = import_torch("transformers", "safetensors.torch")
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256, "patch_size": 8, "image_size": 32}
TEXT = {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96, "max_position_embeddings": 12}
TEXT |= {"hidden_size": 48, "eos_token_id": 95}
MODELS = {
    "hf_dinov2": lambda t: t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**SMALL, use_swiglu_ffn=True)),
    "hf_dinov3": lambda t: t.DINOv3ViTModel(t.DINOv3ViTConfig(**SMALL, use_gated_mlp=True, hidden_act="silu", num_register_tokens=4)),
    "hf_clip": lambda t: t.CLIPModel(t.CLIPConfig(text_config=TEXT | {"intermediate_size": 192}, vision_config=SMALL, projection_dim=40)),
    "hf_siglip": lambda t: t.SiglipModel(
        t.SiglipConfig(text_config=TEXT | {"intermediate_size": 100, "projection_size": 64}, vision_config=SMALL)
    ),
}


@pytest.mark.parametrize("layout", MODELS)
def test_a_folder_of_transformers_answers_as_its_model_and_comes_back_to_the_byte(layout, tmp_path):
    model = MODELS[layout](transformers).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            spread, centre = (parameter.shape[-1] ** -0.5, 0) if parameter.ndim > 1 else (0.3, 0.5)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread + centre)
    model.save_pretrained(tmp_path)
    config = None if layout != "hf_clip" else Towers(*clip_towers())
    checkpoint, _ = convert(tmp_path, tmp_path / "ours.safetensors", heads=Heads(4, 4, 4), config=config)
    assert checkpoint.layout.name == layout
    convert(tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors", layout=layout)
    before, after = (safetensors_torch.load_file(tmp_path / name) for name in ("model.safetensors", "theirs.safetensors"))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())

    images, vision = random_images(8, 32, 32), checkpoint.towers.vision
    both = checkpoint.towers.text is not None
    ours = (load_clip if both else load_encoder)(tmp_path / "ours.safetensors")
    ids = random_ids(8, Towers(vision, TextConfig(48, 2, 4, 12, 64, 96)))
    answers = jax.jit(lambda model: (model.encode_image(images), model.encode_text(ids)) if both else (model(images),))(ours)
    wanted = []

    def features(pixels):
        return (model.get_image_features if both else model)(pixel_values=pixels)

    for dtype in (torch.float32, torch.float64):
        model.to(dtype)
        with torch.no_grad():
            found = normalised(features, vision)(torch.from_numpy(images).permute(0, 3, 1, 2).to(dtype))
            texts = [model.get_text_features(torch.from_numpy(ids).long()).pooler_output.numpy()] if both else []
        wanted.append([(found.pooler_output if both else found.last_hidden_state).numpy(), *texts])
    for answer, *theirs in zip(answers, *wanted, strict=True):
        assert_as_exact_as_the_original(answer, *theirs)


def clip_towers():
    return replace(FAMILIES["CLIP"].vision, output=40), TextConfig(48, 2, 4, 12, 40, 96, activation="quick_gelu")
