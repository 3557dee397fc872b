import jax.numpy as jnp
from flax import nnx

from jaxface.adapters.adapt import adapt_with_groups
from jaxface.adapters.options import AdapterOptions
from jaxface.models.heads import Classifier
from jaxface.runs.parts import take_apart
from tiny_encoder import tiny_encoder


def test_frozen_matrices_are_held_in_the_dtype_that_is_asked_for_and_all_else_in_float32():
    encoder, groups = adapt_with_groups(tiny_encoder(), "dora", AdapterOptions(rank=2), nnx.Rngs(0))
    parts = take_apart(Classifier(encoder, {"age": 9}, rngs=nnx.Rngs(1)), groups, jnp.bfloat16)
    matrices = {name for name in parts.frozen if name.endswith((".base", ".kernel"))}
    assert len(matrices) >= 7
    assert {parts.frozen[name].dtype for name in matrices} == {jnp.dtype("bfloat16")}
    rest = [leaf for name, leaf in parts.frozen.items() if name not in matrices]
    assert {leaf.dtype for leaf in (*rest, *parts.trained.values(), *parts.statistics.values())} == {jnp.dtype("float32")}
