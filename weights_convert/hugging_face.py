"""The tables of Hugging Face transformers' layouts, as its files have them: q, k and v apart, one table a family."""

from __future__ import annotations

from weights_convert.rows import ONE_BEFORE, PATCHES, TRANSPOSED, TWO_BEFORE, Row, fused_pool, linear, norm


def _qkv(theirs: str, names: tuple[str, str, str]) -> tuple[Row, ...]:
    """Three linears of one fused kernel; biases of all three, or of the first and the last."""
    block, ours = f"{theirs}.{{name}}", "blocks.{i}.attn.qkv"
    kernels = (Row(f"{ours}.kernel", block.replace("{name}", n) + ".weight", TRANSPOSED, piece=(k, k + 1, 3)) for k, n in enumerate(names))
    biases = (
        Row(f"{ours}.bias", block.replace("{name}", n) + ".bias", piece=(k, k + 1, 3), when=lambda c: c.qkv_bias == "all")
        for k, n in enumerate(names)
    )
    keyless = (
        Row(f"{ours}.bias", block.replace("{name}", n) + ".bias", piece=(k, k + 1, 2), when=lambda c: c.qkv_bias == "no key")
        for k, n in enumerate((names[0], names[2]))
    )
    return (*kernels, *biases, *keyless)


def _dinov2() -> tuple[Row, ...]:
    block = "encoder.layer.{i}"
    return (
        Row("patch.kernel", "embeddings.patch_embeddings.projection.weight", PATCHES),
        Row("patch.bias", "embeddings.patch_embeddings.projection.bias"),
        Row("class_token", "embeddings.cls_token", TWO_BEFORE),
        Row("registers", "embeddings.register_tokens", ONE_BEFORE),
        Row("mask_token", "embeddings.mask_token", optional=True),
        Row("positions", "embeddings.position_embeddings", ONE_BEFORE),
        *norm("blocks.{i}.norm1", f"{block}.norm1"),
        *_qkv(f"{block}.attention.attention", ("query", "key", "value")),
        *linear("blocks.{i}.attn.out", f"{block}.attention.output.dense"),
        *norm("blocks.{i}.norm2", f"{block}.norm2"),
        *(row for n in ("none", "packed") for row in _mlp(block, n)),
        *(Row(f"blocks.{{i}}.scale{n}", f"{block}.layer_scale{n}.lambda1") for n in (1, 2)),
        *norm("norm_post", "layernorm"),
    )


def _mlp(block: str, gate: str) -> tuple[Row, ...]:
    first, last = ("fc1", "fc2") if gate == "none" else ("weights_in", "weights_out")
    rows = (*linear("blocks.{i}.mlp.fc", f"{block}.mlp.{first}"), *linear("blocks.{i}.mlp.proj", f"{block}.mlp.{last}"))
    return tuple(row._replace(when=lambda c: c.gate == gate) for row in rows)


def _dinov3() -> tuple[Row, ...]:
    block, gate = "layer.{i}", "layer.0.mlp.gate_proj.weight"
    return (
        Row("patch.kernel", "embeddings.patch_embeddings.weight", PATCHES),
        Row("patch.bias", "embeddings.patch_embeddings.bias"),
        Row("class_token", "embeddings.cls_token", TWO_BEFORE),
        Row("registers", "embeddings.register_tokens", ONE_BEFORE),
        Row("mask_token", "embeddings.mask_token", ONE_BEFORE, optional=True),
        *norm("blocks.{i}.norm1", f"{block}.norm1"),
        *_qkv(f"{block}.attention", ("q_proj", "k_proj", "v_proj")),
        *linear("blocks.{i}.attn.out", f"{block}.attention.o_proj"),
        *norm("blocks.{i}.norm2", f"{block}.norm2"),
        *(row._replace(when=lambda c: c.gate == "none", beside=f"!{gate}") for row in linear("blocks.{i}.mlp.fc", f"{block}.mlp.up_proj")),
        *linear("blocks.{i}.mlp.gate", f"{block}.mlp.gate_proj"),
        *(row._replace(when=lambda c: c.gate == "separate", beside=gate) for row in linear("blocks.{i}.mlp.value", f"{block}.mlp.up_proj")),
        *linear("blocks.{i}.mlp.proj", f"{block}.mlp.down_proj"),
        *(Row(f"blocks.{{i}}.scale{n}", f"{block}.layer_scale{n}.lambda1") for n in (1, 2)),
        *norm("norm_post", "norm"),
    )


def _layers() -> tuple[Row, ...]:
    """The blocks of CLIP's and SigLIP's towers."""
    block = "encoder.layers.{i}"
    return (
        *norm("blocks.{i}.norm1", f"{block}.layer_norm1"),
        *_qkv(f"{block}.self_attn", ("q_proj", "k_proj", "v_proj")),
        *linear("blocks.{i}.attn.out", f"{block}.self_attn.out_proj"),
        *norm("blocks.{i}.norm2", f"{block}.layer_norm2"),
        *linear("blocks.{i}.mlp.fc", f"{block}.mlp.fc1"),
        *linear("blocks.{i}.mlp.proj", f"{block}.mlp.fc2"),
    )


HF_DINOV2, HF_DINOV3 = _dinov2(), _dinov3()

HF_CLIP = (
    Row("patch.kernel", "vision_model.embeddings.patch_embedding.weight", PATCHES),
    Row("class_token", "vision_model.embeddings.class_embedding"),
    Row("positions", "vision_model.embeddings.position_embedding.weight"),
    *norm("norm_pre", "vision_model.pre_layrnorm"),
    *(row._replace(theirs=f"vision_model.{row.theirs}") for row in _layers()),
    *norm("norm_post", "vision_model.post_layernorm"),
    Row("projection.kernel", "visual_projection.weight", TRANSPOSED),
)

HF_CLIP_TEXT = (
    Row("embedding", "text_model.embeddings.token_embedding.weight"),
    Row("positions", "text_model.embeddings.position_embedding.weight"),
    *(row._replace(theirs=f"text_model.{row.theirs}") for row in _layers()),
    *norm("norm", "text_model.final_layer_norm"),
    Row("projection.kernel", "text_projection.weight", TRANSPOSED),
)

HF_SIGLIP = (
    Row("patch.kernel", "embeddings.patch_embedding.weight", PATCHES),
    Row("patch.bias", "embeddings.patch_embedding.bias"),
    Row("positions", "embeddings.position_embedding.weight"),
    *_layers(),
    *norm("norm_post", "post_layernorm"),
    *fused_pool("head", "attention", "fc1", "fc2"),
)

HF_SIGLIP_TEXT = (
    Row("embedding", "embeddings.token_embedding.weight"),
    Row("positions", "embeddings.position_embedding.weight"),
    *_layers(),
    *norm("norm", "final_layer_norm"),
    *linear("projection", "head"),
)
