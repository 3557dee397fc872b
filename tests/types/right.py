"""Every public function called as it is meant: no line is an error of the type checker."""

from pathlib import Path

import jax
import jax.numpy as jnp

import jaxface

encoder = jaxface.load_encoder("PE-Core-L14-336.pt", dtype=jnp.bfloat16)
features: jax.Array = encoder(jnp.zeros((1, 336, 336, 3)))
clip = jaxface.load_clip(Path("PE-Core-L14-336.pt"))
texts: jax.Array = clip.encode_text(jnp.asarray(jaxface.tokenize(["a photo"], context_length=32)))
config, model = jaxface.load_run("runs/dora")
name: str = config.name
adapted = jaxface.adapt(encoder, "dora", rank=64, dropout=0.1, blocks="0-11", seed=1)
jaxface.save_peft(adapted, "folder", base="PE-Core-L14-336")
adapters = jaxface.stack_adapters({"one": adapted, "two": jaxface.load_peft(encoder, Path("folder"))})
jaxface.save_weights(jaxface.merge(adapted), "encoder.safetensors", layout="timm", dtype="float16")
predictor = jaxface.Predictor("runs/dora", batch_size=8)
answers = predictor([])
report = jaxface.kernels.check("xla", dtypes=["fp32"], rounds=0)
version: str = jaxface.__version__
