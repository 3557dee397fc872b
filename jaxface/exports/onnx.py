"""ONNX, written from the model itself: LayerNormalization and Gelu as single nodes, rotary positions and scales folded into the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxface.adapters.task_specific import TaskLowRank, TaskPools
from jaxface.errors import UserError
from jaxface.exports.exporter import Answer, register_exporter
from jaxface.exports.onnx_file import ABOUT, open_onnx, require_onnx, write_onnx
from jaxface.exports.onnx_graph import Graph
from jaxface.models.blocks import Block
from jaxface.models.config import PIXELS
from jaxface.models.encoder import Encoder
from jaxface.models.heads import Classifier, Head
from jaxface.models.layers import GatedMLP, LayerNorm, PackedMLP
from jaxface.models.pool import split_heads
from jaxface.models.positions import resize_positions
from jaxface.models.rope import rope_angles
from jaxface.runs.model import Trained

OPSET = 20


def dense(graph: Graph, kernel: Any) -> np.ndarray:
    """A kernel as one array [in, out]; [T, 1, in, out] for one with an update per task, which makes all that follows differ by task."""
    if isinstance(kernel, TaskLowRank):
        graph.tasks = kernel.a.shape[0]
        return np.asarray(kernel.kernels(), np.float32)[:, None]
    if isinstance(kernel, nnx.Variable):
        kernel = kernel[...]
    if not isinstance(kernel, jax.Array):
        raise UserError(f"a kernel of kind {type(kernel).__name__} has no form in ONNX: export to stablehlo")
    return np.asarray(kernel, np.float32)


def linear(graph: Graph, x: str, layer: Any, scale: Any = None, order: np.ndarray | None = None, *, whole: bool = False) -> str:
    """A linear layer, its outputs scaled and put in another order; a `whole` one, where little is computed, is in float32 in every file."""
    kernel = dense(graph, layer.kernel)
    bias = np.zeros(kernel.shape[-1], np.float32) if layer.bias is None else np.asarray(layer.whole_bias(), np.float32)
    factor = np.ones_like(bias) if scale is None else np.asarray(scale, np.float32)
    kernel, bias = kernel * factor, bias * factor
    if order is not None:
        kernel, bias = kernel[..., order], bias[order]
    y = graph.add("MatMul", x, graph.constant(kernel)) if whole else graph.product(x, kernel)
    return y if layer.bias is None else graph.add("Add", y, graph.constant(bias))


def norm(graph: Graph, x: str, layer: LayerNorm) -> str:
    scale, bias = graph.constant(layer.scale[...]), graph.constant(layer.bias[...])
    return graph.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=layer.epsilon)


def _sigmoid_gate(graph: Graph, x: str, slope: float = 1.0) -> str:
    steep = x if slope == 1 else graph.add("Mul", x, graph.constant(slope))
    return graph.add("Mul", x, graph.add("Sigmoid", steep))


ACTIVATIONS: dict[str, Callable[[Graph, str], str]] = {
    "gelu": lambda graph, x: graph.add("Gelu", x),
    "gelu_tanh": lambda graph, x: graph.add("Gelu", x, approximate="tanh"),
    "quick_gelu": lambda graph, x: _sigmoid_gate(graph, x, 1.702),
    "silu": _sigmoid_gate,
}
"""By the name that `jaxface.models.layers.ACTIVATIONS` has for it."""


def mlp(graph: Graph, x: str, layer: Any, scale: Any = None, *, whole: bool = False) -> str:
    if layer.activation not in ACTIVATIONS:
        raise UserError(f"activation {layer.activation} has no form in ONNX: export to stablehlo")
    value = None
    if isinstance(layer, PackedMLP):
        gate, value = graph.add("Split", linear(graph, x, layer.fc, whole=whole), outputs=2, axis=-1, num_outputs=2)
    elif isinstance(layer, GatedMLP):
        gate, value = (linear(graph, x, part, whole=whole) for part in (layer.gate, layer.value))
    else:
        gate = linear(graph, x, layer.fc, whole=whole)
    y = ACTIVATIONS[layer.activation](graph, gate)
    return linear(graph, y if value is None else graph.add("Mul", y, value), layer.proj, scale, whole=whole)


def heads_of(graph: Graph, x: str, tokens: int, heads: int, width: int) -> str:
    """[..., N, D] -> [..., H, N, D / H]"""
    x, n = graph.batched(x, tokens, heads, width // heads), graph.lead
    return graph.add("Transpose", x, perm=[*range(n), n + 1, n, n + 2])


def attend(graph: Graph, q: str, k: str, v: str, tokens: int, width: int) -> str:
    """Heads [..., H, N, d] and [..., H, M, d] -> [..., N, D]; q is scaled already."""
    scores = graph.add("MatMul", q, graph.swap_last(k, graph.lead + 3))
    y = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), v)
    n = graph.lead
    return graph.batched(graph.add("Transpose", y, perm=[*range(n), n + 1, n, n + 2]), tokens, width)


def rotate(graph: Graph, x: str, cos: str, sin: str) -> str:
    """Turns channels in half-split order by angles [N, d / 2]."""
    first, second = graph.add("Split", x, outputs=2, axis=-1, num_outputs=2)
    left = graph.add("Sub", graph.add("Mul", first, cos), graph.add("Mul", second, sin))
    right = graph.add("Add", graph.add("Mul", second, cos), graph.add("Mul", first, sin))
    return graph.add("Concat", left, right, axis=-1)


def block(graph: Graph, x: str, layer: Block, tokens: int, angles: tuple[str, str] | None) -> str:
    heads, width = layer.attn.heads, layer.norm1.scale.shape[0]
    inner = width // heads
    split = np.arange(inner)
    if angles is not None and not layer.attn.halves:  # pairs side by side -> all firsts, then all seconds
        split = np.concatenate([split[0::2], split[1::2]])
    turned = (inner * np.arange(heads)[:, None] + split).ravel()
    order = np.concatenate([turned, width + turned, 2 * width + np.arange(width)])
    scale = np.repeat([inner**-0.5, 1.0, 1.0], width)
    parts = graph.add("Split", linear(graph, norm(graph, x, layer.norm1), layer.attn.qkv, scale, order), outputs=3, axis=-1, num_outputs=3)
    q, k, v = (heads_of(graph, part, tokens, heads, width) for part in parts)
    if angles is not None:
        q, k = rotate(graph, q, *angles), rotate(graph, k, *angles)
    y = attend(graph, q, k, v, tokens, width)
    gains = [None if gain is None else gain[...] for gain in (layer.scale1, layer.scale2)]
    x = graph.add("Add", x, linear(graph, y, layer.attn.out, gains[0]))
    return graph.add("Add", x, mlp(graph, norm(graph, x, layer.norm2), layer.mlp, gains[1]))


def embed(graph: Graph, images: str, encoder: Encoder, size: int) -> tuple[str, int, tuple[str, str] | None]:
    """Images uint8 [B, S, S, 3] -> tokens [B, N, D], N, and cosine and sine of the rotary angles, or None without any."""
    c = encoder.config
    side = size // c.patch
    mean, deviation = (255 * np.asarray(values) for values in PIXELS[c.pixels])
    x = graph.add("Cast", images, to=1)
    x = graph.add("Sub", graph.add("Mul", x, graph.constant(1 / deviation)), graph.constant(mean / deviation))
    x = graph.add("Transpose", graph.reshape(x, -1, side, c.patch, side, c.patch, 3), perm=[0, 1, 3, 2, 4, 5])
    x = linear(graph, graph.reshape(x, -1, side * side, 3 * c.patch**2), encoder.patch, whole=True)
    tokens = c.prefix + side * side
    places = np.zeros((tokens, c.width), np.float32)
    if encoder.class_token is not None:
        places[0] = encoder.class_token[...]
    if encoder.registers is not None:
        places[c.class_token : c.prefix] = encoder.registers[...]
    if encoder.positions is not None:
        positions = np.array(resize_positions(encoder.positions[...], side, side, c.placed, c.resize), np.float32)
        places[: c.placed] += positions[: c.placed]
        places[c.prefix :] = positions[c.placed :]
    if c.prefix:  # tokens of zeros in front, which what stands there is added to
        x = graph.add("Pad", x, graph.constant([0, c.prefix, 0, 0, 0, 0], np.int64))
    x = graph.add("Add", x, graph.constant(places)) if places.any() else x
    x = x if encoder.norm_pre is None else norm(graph, x, encoder.norm_pre)
    angles = rope_angles(c.rope, side, side, c.width // c.heads, c.class_token, c.registers)
    return x, tokens, None if angles is None else (graph.constant(np.cos(angles)), graph.constant(np.sin(angles)))


READOUTS: dict[str, tuple[str, ...]] = {
    **{"class": ("class",), "mean": ("patches",)},
    **{"all": ("all",), "patches": ("patches",), "both": ("class", "patches")},
}
"""Which tokens' means stand behind one another, by the names of `jaxface.models.pool.READOUTS` and `jaxface.models.heads.TOKENS`."""


def readout(graph: Graph, x: str, what: str, prefix: int) -> str:
    """[..., N, D] -> [..., 1, D], or [..., 1, 2 D] for the class token and the patches' mean."""
    if what not in READOUTS:
        raise UserError(f"readout {what} has no form in ONNX: export to stablehlo")
    ends = {"all": (0, 2**31), "class": (0, 1), "patches": (prefix, 2**31)}
    parts = []
    for first, last in (ends[part] for part in READOUTS[what]):
        part = graph.add("Slice", x, *(graph.constant([value], np.int64) for value in (first, last, graph.lead)))
        parts.append(graph.add("ReduceMean", part, graph.constant([graph.lead], np.int64), keepdims=1))
    return parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=-1)


def pool(graph: Graph, x: str, layer: Any, tokens: int, width: int) -> str:
    """Tokens [..., N, D] -> [..., 1, D]; with a pool per task [T, B, 1, D]."""
    if isinstance(layer, TaskPools):
        each = [graph.add("Unsqueeze", pool(graph, x, own, tokens, width), graph.constant([0], np.int64)) for own in layer.pools]
        graph.tasks = len(each)
        return graph.add("Concat", *each, axis=0)
    probe = layer.probe[...]
    q = np.asarray(split_heads(layer.q(probe), layer.heads), np.float32) * (width // layer.heads) ** -0.5
    k, v = (
        heads_of(graph, part, tokens, layer.heads, width)
        for part in graph.add("Split", linear(graph, x, layer.kv), outputs=2, axis=-1, num_outputs=2)
    )
    scores = graph.add("MatMul", graph.constant(q), graph.swap_last(k, graph.lead + 3))
    if q.ndim > 3:
        graph.tasks = q.shape[0]
    y = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), v)
    x = linear(graph, graph.batched(y, 1, width), layer.out, whole=True)  # of one token, here and below
    return graph.add("Add", x, mlp(graph, norm(graph, x, layer.norm), layer.mlp, whole=True))


def features(graph: Graph, images: str, model: Classifier, size: int) -> str:
    """[B, S, S, 3] -> [B, D], or [T, B, D] where tasks have features of their own."""
    encoder = model.encoder
    if encoder.fusion is not None:
        raise UserError("features of several depths, fused, have no form in ONNX: export to stablehlo")
    x, tokens, angles = embed(graph, images, encoder, size)
    width = encoder.config.width
    for stage in encoder.stages:
        for index in range(stage.norm1.scale.shape[0]):
            x = block(graph, x, jax.tree.map(lambda leaf, i=index: leaf[i], stage), tokens, angles)
    x = x if encoder.norm_post is None else norm(graph, x, encoder.norm_post)
    x = x if encoder.pool is None else pool(graph, x, encoder.pool, tokens, width)
    x = x if encoder.projection is None else linear(graph, x, encoder.projection, whole=True)
    if encoder.pool is None:
        x = readout(graph, x, model.tokens if model.reads_tokens else encoder.config.readout, encoder.config.prefix)
    return graph.add("ReduceMean", x, graph.constant([graph.lead], np.int64), keepdims=0)


def head(graph: Graph, x: str, layer: Head, task: str, count: int) -> None:
    """Features [B, D] -> the output named after the task, [B, C]."""
    if layer.norm is not None:
        gain = layer.norm.scale[...] * jax.lax.rsqrt(layer.norm.variance[...] + 1e-5)
        shift = layer.norm.bias[...] - layer.norm.mean[...] * gain
        x = graph.add("Add", graph.add("Mul", x, graph.constant(gain)), graph.constant(shift))
    if layer.hidden is not None:
        x = graph.add("Gelu", linear(graph, x, layer.hidden, whole=True))
    OUTPUTS[layer.output](graph, linear(graph, x, layer.out, whole=True), task, count)


def class_logits(graph: Graph, x: str, task: str, count: int) -> None:
    graph.add("Identity", x, name=task)


def rank_logits(graph: Graph, ranks: str, task: str, count: int) -> None:
    """As `jaxface.models.heads.ranks_to_logits`."""
    later = graph.add("Sigmoid", ranks)
    first = graph.add("Slice", later, *(graph.constant([value], np.int64) for value in (0, 1, 1)))
    zero = graph.add("Mul", first, graph.constant(0.0))
    one = graph.add("Add", zero, graph.constant(1.0))
    p = graph.add("Sub", graph.add("Concat", one, later, axis=-1), graph.add("Concat", later, zero, axis=-1))
    logits = graph.add("Log", graph.add("Max", p, graph.constant(1e-7)))
    passed = graph.add("Cast", graph.add("Greater", ranks, graph.constant(0.0)), to=7)
    answer = graph.add("ReduceSum", passed, graph.constant([-1], np.int64), keepdims=1)
    classes = graph.constant(np.arange(count), np.int64)
    largest = graph.add("ReduceMax", logits, graph.constant([-1], np.int64), keepdims=1)
    raised = graph.add("Max", logits, graph.add("Add", largest, graph.constant(1e-3)))
    graph.add("Where", graph.add("Equal", classes, answer), raised, logits, name=task)


OUTPUTS = {"classes": class_logits, "ranks": rank_logits, "labels": class_logits, "number": class_logits}
"""What follows a head's last layer, by the name that `jaxface.models.heads.OUTPUTS` has for it."""


def build(model: Classifier, size: int, classes: Mapping[str, int], graph: Graph | None = None) -> Any:
    """The merged model as an ONNX model: `images` uint8 [batch, S, S, 3] -> logits [batch, C] named after the tasks.

    Args:
      graph: an empty one, for other products than float32's.
    """
    from onnx import TensorProto, helper

    graph = Graph() if graph is None else graph
    x = features(graph, "images", model, size)
    for index, task in enumerate(sorted(model.heads)):
        own = x if graph.tasks is None else graph.add("Gather", x, graph.constant(index, np.int64), axis=0)
        head(graph, own, model.heads[task], task, classes[task])
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", size, size, 3])
    outputs = [helper.make_tensor_value_info(task, TensorProto.FLOAT, ["batch", count]) for task, count in classes.items()]
    return helper.make_model(
        helper.make_graph(graph.nodes, "jaxface", [images], outputs, graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=10,
        producer_name="jaxface",
    )


def merged_float32(trained: Trained) -> tuple[Classifier, dict[str, int]]:
    """What `build` takes of a run's model."""
    model = trained.merged()
    model.encoder.dtype = jnp.float32
    return model, {task.name: task.width for task in trained.tasks}


@register_exporter("onnx")
def export_onnx(trained: Trained, folder: Path) -> tuple[Answer, dict[str, Any]]:
    """Writes the merged model as ONNX. Raises UserError without the extra `onnx`."""
    require_onnx()
    model, classes = merged_float32(trained)
    write_onnx(build(model, trained.image_size, classes), folder)
    return open_onnx(folder), ABOUT | {"opset": OPSET}
