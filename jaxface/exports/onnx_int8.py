"""ONNX in eight bits: products over all tokens of int8 inputs and int8 kernels, in the standard's own words (QuantizeLinear,
DequantizeLinear), which ONNX Runtime and OpenVINO compute as products of integers.

A kernel has a scale for each output. A product's input has one scale, fixed beforehand from the run's validation records: with scales
taken from each batch, as dynamic quantisation has them, a face's answer would depend on the faces beside it. It reaches to the largest
value seen: cutting that off makes a product's mean error smaller, and answers worse, most of all of faces unlike those. Where the input
comes from a layer norm, channels share their range with the kernel's rows (SmoothQuant, Xiao et al. 2023), which costs nothing: the norm's
scale takes it. Products whose rounding moves the answers most, for what they cost, stay in float32 until the answers are near enough.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxface.exports.agreement import SPLIT, agreement_of, answers, changes, records_of
from jaxface.exports.exporter import Answer, register_exporter
from jaxface.exports.onnx import OPSET, build, merged_float32
from jaxface.exports.onnx_file import ABOUT, FILE, answer_of, require_onnx, session, write_onnx
from jaxface.exports.onnx_graph import Graph
from jaxface.progress import Track
from jaxface.runs.model import Trained

LOOKED, CHOSEN, MEASURED = 64, 192, 512
"""Records, at most, that scales come from, that say how many products stay in float32, and that the agreement is measured on."""
TRIED = 8
"""Records that each product is rounded for alone, to see what that does to the answers."""
TOKENS = 24
"""Tokens of an image that a product's scale is tried on, about."""
SHARED = (None, 0.0, 0.35, 0.5, 0.65)
"""Exponents of SmoothQuant's equation 4; None for none."""
CHANGE = 0.003
"""How much int8 may change the probability of a class, in the mean, before products go back to float32."""
TOLERANCE = 0.05
"""Largest difference of a logit over the largest, between kernels that sum alike and round on different sides of a half."""


class Rounding(NamedTuple):
    """How a product's input becomes int8.

    Attributes:
      scale: of its steps.
      shared: what its channels are divided by first, and the kernel's rows multiplied with; None for nothing.
      error: of the product on the records looked at, mean square.
    """

    scale: float
    shared: np.ndarray | None
    error: float


class Int8Graph(Graph):
    """A graph whose products are of int8 where there is a rounding for them."""

    def __init__(self, roundings: Sequence[Rounding | None]) -> None:
        super().__init__()
        self.roundings = roundings

    def product(self, x: str, kernel: np.ndarray) -> str:
        rounding = self.roundings[len(self.products)]
        if rounding is None:
            return super().product(x, kernel)
        self.products.append((x, kernel))
        if rounding.shared is not None:
            x, kernel = self._divided(rounding.shared), kernel * rounding.shared[:, None]
        return self._rounded(x, kernel, rounding.scale)

    def _rounded(self, x: str, kernel: np.ndarray, scale: float) -> str:
        scales = kernel_scales(kernel)
        rounded = self.constant(np.rint(kernel / scales), np.int8)
        zeros = self.constant(np.zeros(len(scales)), np.int8)
        kernel_of = self.add("DequantizeLinear", rounded, self.constant(scales), zeros, axis=1)
        return self.add("MatMul", self._steps(x, scale), kernel_of)

    def _steps(self, x: str, scale: float) -> str:
        """x in steps of the scale."""
        step, zero = self.constant(scale), self.constant(0, np.int8)
        return self.add("DequantizeLinear", self.add("QuantizeLinear", x, step, zero), step, zero)

    def _divided(self, by: np.ndarray) -> str:
        """The layer norm that was added last, its output's channels divided."""
        from onnx import numpy_helper

        node, constants = self.nodes.pop(), {constant.name: constant for constant in self.constants}
        scale, bias = (self.constant(numpy_helper.to_array(constants[name]) / by) for name in node.input[1:])
        epsilon = next(attribute.f for attribute in node.attribute if attribute.name == "epsilon")
        return self.add(node.op_type, node.input[0], scale, bias, axis=-1, epsilon=epsilon)


class OneRounded(Int8Graph):
    """In float32 but for the input of one product, whose number comes beside the images as `which`."""

    def _rounded(self, x: str, kernel: np.ndarray, scale: float) -> str:
        here = self.add("Equal", "which", self.constant(len(self.products) - 1, np.int64))
        return self.add("MatMul", self.add("Where", here, self._steps(x, scale), x), self.constant(kernel))


def kernel_scales(kernel: np.ndarray) -> np.ndarray:
    """One for each output of a kernel [in, out]."""
    return np.maximum(np.abs(kernel).max(0), 1e-12).astype(np.float32) / np.float32(127)


def rounding_of(rows: np.ndarray, kernel: np.ndarray, reach: np.ndarray, shareable: bool) -> Rounding:
    """The scale, and what channels share with the kernel's rows, that keep most of a product.

    Args:
      rows: some inputs [M, in].
      kernel: [in, out].
      reach: the largest absolute value of each of all inputs' channels [in].
      shareable: whether the input's channels may be divided at no cost.
    """
    exact = rows @ kernel
    reach, weight = np.maximum(reach, 1e-5), np.maximum(np.abs(kernel).max(1), 1e-5)
    found = []
    for exponent in SHARED if shareable else (None,):
        by = np.ones_like(reach) if exponent is None else np.asarray(reach**exponent / weight ** (1 - exponent), np.float32)
        x, w = rows / by, kernel * by[:, None]
        scales, step = kernel_scales(w), np.float32((reach / by).max() / 127)
        error = float(np.square(np.rint(x / step) * step @ (np.rint(w / scales) * scales) - exact).mean())
        found.append(Rounding(float(step), None if exponent is None else by, error))
    return min(found, key=lambda one: one.error)


def roundings_of(build_graph: Callable[[Graph], Any], images: np.ndarray, every: int) -> list[Rounding | None]:
    """How every product may be rounded; None for kernels that differ by task.

    Args:
      images: [N, S, S, 3]; what comes into a product for these is looked at.
      every: of so many tokens one.
    """
    from onnx import TensorProto, helper

    graph = Graph()
    proto = build_graph(graph)
    made = {name: node.op_type for node in graph.nodes for name in node.output}
    uses = Counter(name for node in graph.nodes for name in node.input)
    watched = [index for index, (_, kernel) in enumerate(graph.products) if kernel.ndim == 2]
    begin, end, axis, step = (graph.constant([value], np.int64) for value in (0, 2**31, 0, every))
    for index in watched:
        x, kernel = graph.products[index]
        x = graph.reshape(x, -1, len(kernel))
        graph.add("Slice", x, begin, end, axis, step, name=f"rows_{index}")
        graph.add("ReduceMax", graph.add("Abs", x), axis, keepdims=0, name=f"reach_{index}")
    del proto.graph.node[:], proto.graph.initializer[:]
    proto.graph.node.extend(graph.nodes)
    proto.graph.initializer.extend(graph.constants)
    names = [f"{what}_{index}" for index in watched for what in ("rows", "reach")]
    proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    with tempfile.TemporaryDirectory() as folder:
        write_onnx(proto, Path(folder))
        del proto
        opened = session(Path(folder) / FILE)
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for image in images:
        for name, value in zip(names, opened.run(names, {"images": image[None]}), strict=True):
            found[name].append(value)
    del opened
    roundings: list[Rounding | None] = [None] * len(graph.products)
    with Track("int8: scales", len(watched), unit="products") as track:
        for index in watched:
            x, kernel = graph.products[index]
            rows, reach = np.concatenate(found.pop(f"rows_{index}")), np.max(found.pop(f"reach_{index}"), 0)
            roundings[index] = rounding_of(rows, kernel, reach, made.get(x) == "LayerNormalization" and uses[x] == 1)
            track.advance()
    return roundings


def effects_of(
    build_graph: Callable[[Graph], Any], roundings: Sequence[Rounding | None], images: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What each product's rounding does to the answers, and what the product costs.

    Args:
      images: [N, S, S, 3]; answered again with the input of each product rounded alone.

    Returns the mean squares of what the logits of each task change by [P, tasks], and the kernels' sizes [P]; zeros without a rounding.
    """
    from onnx import TensorProto, helper

    graph = OneRounded(roundings)
    proto = build_graph(graph)
    sizes = np.array([kernel.size for _, kernel in graph.products])
    proto.graph.input.append(helper.make_tensor_value_info("which", TensorProto.INT64, []))
    with tempfile.TemporaryDirectory() as folder:
        write_onnx(proto, Path(folder))
        del proto, graph
        opened = session(Path(folder) / FILE)
    exact = opened.run(None, {"images": images, "which": np.array(-1)})
    effects = np.zeros((len(sizes), len(exact)))
    products = [index for index, one in enumerate(roundings) if one]
    with Track("int8: what each product does", len(products), unit="products") as track:
        for index in products:
            found = opened.run(None, {"images": images, "which": np.array(index)})
            effects[index] = [np.square(a - b).mean() for a, b in zip(found, exact, strict=True)]
            track.advance()
    return effects, sizes


@register_exporter("onnx-int8")
def export_int8(trained: Trained, folder: Path) -> tuple[Answer, dict[str, Any]]:
    """Writes the merged model as ONNX in eight bits. Raises UserError without the extra `onnx`, or without validation records."""
    require_onnx()
    model, classes = merged_float32(trained)
    images, labels = records_of(trained, LOOKED + CHOSEN + MEASURED)
    looked, chosen = (min(most, len(images) // 3) for most in (LOOKED, CHOSEN))

    def build_graph(graph: Graph) -> Any:
        return build(model, trained.image_size, classes, graph)

    def written(graph: Graph, place: Path) -> Answer:
        write_onnx(build_graph(graph), place)
        return answer_of(session(place / FILE))

    every = max(1, (trained.image_size // model.encoder.config.patch) ** 2 // TOKENS)
    roundings = roundings_of(build_graph, images[:looked], every)
    with tempfile.TemporaryDirectory() as aside:
        exact = answers(written(Graph(), Path(aside)), images[looked:], "float32")
    part = {task: logits[:chosen] for task, logits in exact.items()}
    order, kept = np.array([], int), 0  # products by what they do to the answers for what they cost, and how many of these are in float32
    rounded = sum(one is not None for one in roundings)
    most = rounded // 2
    while True:
        left = {*order[:kept].tolist()}
        answer = written(Int8Graph([None if index in left else one for index, one in enumerate(roundings)]), folder)
        moved = changes(trained.tasks, answers(answer, images[looked : looked + chosen], f"int8, {kept} products in float32"), part)
        if moved.max() <= CHANGE or kept == most:
            break
        if not kept:
            effects, sizes = effects_of(build_graph, roundings, images[:TRIED])
            effects /= np.maximum(effects.sum(0), 1e-30)
            order = np.argsort(-effects.max(1) / sizes)
            rest = np.concatenate([np.ones_like(effects[:1]), 1 - np.cumsum(effects[order], 0)])  # effects of the products beyond so many
        # what products do to the answers adds up as independent noise does: in squares
        expected = moved * np.sqrt(np.maximum(rest, 0) / np.maximum(rest[kept], 1e-30))
        enough = next((n for n in range(kept + 1, most) if expected[n].max() <= CHANGE), most)
        kept = min(enough, 2 * kept) if kept else enough  # no farther at once on what was expected and did not come true
    others = images[looked + chosen :]
    measured = agreement_of(
        trained.tasks,
        {task: values[looked + chosen :] for task, values in labels.items()},
        answers(answer, others, "int8"),
        {task: logits[chosen:] for task, logits in exact.items()},
    )
    about = {
        "precision": "int8",
        "opset": OPSET,
        "products": {"int8": rounded - kept, "float32": len(roundings) - rounded + kept},
        "agreement": {"images": len(others), "split": SPLIT, "order": ["int8", "float32"], "tasks": measured},
    }
    plain = answer_of(session(folder / FILE, plain=True))
    return plain, ABOUT | about | {"checked_by": "ONNX Runtime, node by node", "expected": answer, "tolerance": TOLERANCE}
