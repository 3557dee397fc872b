"""ONNX in eight bits: products over all tokens of int8 inputs and int8 kernels, in the standard's own words (QuantizeLinear,
DequantizeLinear), which ONNX Runtime and OpenVINO compute as products of integers.

A kernel has a scale for each output. A product's input has one scale, fixed beforehand from the run's validation records: with scales
taken from each batch, as dynamic quantisation has them, a face's answer would depend on the faces beside it. Where the input comes from a
layer norm, channels share their range with the kernel's rows (SmoothQuant, Xiao et al. 2023), which costs nothing: the norm's scale
takes it. Products that lose most stay in float32 until the answers are near enough.
"""

from __future__ import annotations

import itertools
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxface.data.tasks import Task, known
from jaxface.errors import UserError
from jaxface.evaluation.measures import measure_of
from jaxface.evaluation.metrics import probabilities, reliability
from jaxface.exports.exporter import Answer, Logits, register_exporter
from jaxface.exports.onnx import OPSET, build, merged_float32
from jaxface.exports.onnx_file import ABOUT, FILE, answer_of, require_onnx, session, write_onnx
from jaxface.exports.onnx_graph import Graph
from jaxface.progress import Track
from jaxface.runs.model import Trained

SPLIT = "validation"
LOOKED, CHOSEN, MEASURED = 64, 192, 512
"""Records, at most, that scales come from, that say which products stay in float32, and that the agreement is measured on."""
TOKENS = 24
"""Tokens of an image that a product's scale is tried on, about."""
RATIOS = (1.0, 0.85, 0.7, 0.55, 0.4, 0.3, 0.2, 0.12)
"""Shares of the largest value that the largest int8 stands for: what is larger is cut off, and the rest is finer."""
SHARED = (0.0, 0.35, 0.5, 0.65)
"""Exponents of SmoothQuant's equation 4, beside none."""
CHANGE = 0.005
"""Probability that int8 may move from one class to others, in the mean, before products go back to float32."""
TOLERANCE = 0.05
"""Largest difference of a logit over the largest, between kernels that sum alike and round on different sides of a half."""


class Rounding(NamedTuple):
    """How a product's input becomes int8.

    Attributes:
      scale: of its steps.
      shared: what its channels are divided by first, and the kernel's rows multiplied with; None for nothing.
      error: of the product on the records looked at, over the product, as root mean squares.
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
        scales, step, zero = kernel_scales(kernel), self.constant(rounding.scale), self.constant(0, np.int8)
        x = self.add("DequantizeLinear", self.add("QuantizeLinear", x, step, zero), step, zero)
        rounded = self.constant(np.rint(kernel / scales), np.int8)
        zeros = self.constant(np.zeros(len(scales)), np.int8)
        return self.add("MatMul", x, self.add("DequantizeLinear", rounded, self.constant(scales), zeros, axis=1))

    def _divided(self, by: np.ndarray) -> str:
        """The layer norm that was added last, its output's channels divided."""
        from onnx import numpy_helper

        node, constants = self.nodes.pop(), {constant.name: constant for constant in self.constants}
        scale, bias = (self.constant(numpy_helper.to_array(constants[name]) / by) for name in node.input[1:])
        epsilon = next(attribute.f for attribute in node.attribute if attribute.name == "epsilon")
        return self.add(node.op_type, node.input[0], scale, bias, axis=-1, epsilon=epsilon)


def kernel_scales(kernel: np.ndarray) -> np.ndarray:
    """One for each output of a kernel [in, out]."""
    return np.maximum(np.abs(kernel).max(0), 1e-12).astype(np.float32) / np.float32(127)


def rounding_of(rows: np.ndarray, kernel: np.ndarray, largest: float, shareable: bool) -> Rounding:
    """The scale, and what channels share with the kernel's rows, that keep most of a product.

    Args:
      rows: some inputs [M, in].
      kernel: [in, out].
      largest: absolute value of all inputs.
      shareable: whether the input's channels may be divided at no cost.
    """
    exact = rows @ kernel
    power = float(np.square(exact).mean()) or 1.0
    reach, weight = np.maximum(np.abs(rows).max(0), 1e-5), np.maximum(np.abs(kernel).max(1), 1e-5)
    best = Rounding(1.0, None, np.inf)
    for exponent in (None, *SHARED) if shareable else (None,):
        shared = None if exponent is None else np.asarray(reach**exponent / weight ** (1 - exponent), np.float32)
        x, w = (rows, kernel) if shared is None else (rows / shared, kernel * shared[:, None])
        scales = kernel_scales(w)
        w = np.rint(w / scales) * scales
        top = largest if shared is None else float(np.abs(x).max())
        for ratio in RATIOS:
            step = np.float32(max(top * ratio, 1e-12) / 127)
            error = float(np.square(np.clip(np.rint(x / step), -128, 127) * step @ w - exact).mean() / power) ** 0.5
            if error < best.error:
                best = Rounding(float(step), shared, error)
            elif error > 2 * best.error:
                break
    return best


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
    begin, end, axis, step = (graph.constant([value], np.int64) for value in (0, 2**31, -2, every))
    for index in watched:
        x = graph.products[index][0]
        graph.add("Slice", x, begin, end, axis, step, name=f"rows_{index}")
        graph.add("ReduceMax", graph.add("Abs", x), keepdims=0, name=f"largest_{index}")
    del proto.graph.node[:], proto.graph.initializer[:]
    proto.graph.node.extend(graph.nodes)
    proto.graph.initializer.extend(graph.constants)
    names = [f"{what}_{index}" for index in watched for what in ("rows", "largest")]
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
            rows = np.concatenate([part.reshape(-1, len(kernel)) for part in found.pop(f"rows_{index}")])
            free = made.get(x) == "LayerNormalization" and uses[x] == 1
            roundings[index] = rounding_of(rows, kernel, float(np.max(found.pop(f"largest_{index}"))), free)
            track.advance()
    return roundings


def change(found: Logits, expected: Logits) -> float:
    """The probability that moves from one class to others, in the mean over images; of the task where it is most."""
    return max(float(np.abs(probabilities(found[task]) - probabilities(expected[task])).sum(-1).mean() / 2) for task in expected)


def answers(answer: Answer, images: np.ndarray, title: str) -> dict[str, np.ndarray]:
    """The logits [N, C] of all images, some at a time."""
    parts = []
    with Track(title, len(images), unit="images") as track:
        for start in range(0, len(images), 8):
            parts.append(answer(images[start : start + 8]))
            track.advance(len(images[start : start + 8]))
    return {task: np.concatenate([part[task] for part in parts]) for task in parts[0]}


def records_of(trained: Trained) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Validation images of the run, uint8 [N, S, S, 3], and their labels. Raises UserError for fewer than three."""
    from jaxface.data.framing import resize
    from jaxface.data.images import Unreadable, decode
    from jaxface.data.pipeline import Joined
    from jaxface.runs.data import sets_of_run

    try:
        records = Joined(sets_of_run(trained.config, trained.folder), SPLIT, trained.config.tasks)
    except UserError as error:
        raise UserError(f"int8 takes its scales from the run's validation records: {error} (--data FOLDER names others)") from None
    order = np.random.default_rng(0).permutation(len(records))[: LOOKED + CHOSEN + MEASURED]
    images, kept = [], []
    for index in map(int, order):
        with suppress(Unreadable):
            images.append(resize(decode(records[index]["image"]), trained.image_size, framing=trained.framing))
            kept.append(index)
    if len(images) < 3:
        raise UserError(f"int8 takes its scales from validation records: {len(images)} can be read, expected 3 at least")
    return np.stack(images), {task: labels[kept] for task, labels in records.labels.items()}


def agreement_of(tasks: Sequence[Task], labels: Mapping[str, np.ndarray], ours: Logits, exact: Logits) -> dict[str, Any]:
    """What int8 changes, per task: the share of the same class, and of both models (int8, float32) the accuracy and calibration error."""
    result = {}
    for task in tasks:
        pair, truth = (ours[task.name], exact[task.name]), labels[task.name]
        there = known(truth)
        said: dict[str, Any] = {"same_class": float(task.of.right(task, pair[0], task.of.decided(task, pair[1])).mean())}
        said["change"] = change({task.name: pair[0]}, {task.name: pair[1]})
        if there.any():
            said["accuracy"] = [float(task.of.right(task, logits, truth)[there].mean()) for logits in pair]
        if there.any() and measure_of(task).confuses:
            said["calibration_error"] = [reliability(probabilities(logits), truth).calibration_error for logits in pair]
        result[task.name] = said
    return result


@register_exporter("onnx-int8")
def export_int8(trained: Trained, folder: Path) -> tuple[Answer, dict[str, Any]]:
    """Writes the merged model as ONNX in eight bits. Raises UserError without the extra `onnx`, or without validation records."""
    require_onnx()
    model, classes = merged_float32(trained)
    images, labels = records_of(trained)
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
    worst = sorted((index for index, one in enumerate(roundings) if one), key=lambda index: -roundings[index].error)
    kept = 0
    for kept in itertools.takewhile(lambda count: count <= len(worst) // 2, (0, *(2**power for power in range(12)))):
        left = {*worst[:kept]}
        answer = written(Int8Graph([None if index in left else one for index, one in enumerate(roundings)]), folder)
        part = {task: logits[:chosen] for task, logits in exact.items()}
        if change(answers(answer, images[looked : looked + chosen], f"int8, {kept} products in float32"), part) <= CHANGE:
            break
    rest = images[looked + chosen :]
    measured = agreement_of(
        trained.tasks,
        {task: values[looked + chosen :] for task, values in labels.items()},
        answers(answer, rest, "int8"),
        {task: logits[chosen:] for task, logits in exact.items()},
    )
    about = {
        "precision": "int8",
        "opset": OPSET,
        "products": {"int8": len(worst) - kept, "float32": len(roundings) - len(worst) + kept},
        "agreement": {"images": len(rest), "split": SPLIT, "order": ["int8", "float32"], "tasks": measured},
    }
    plain = answer_of(session(folder / FILE, plain=True))
    return plain, ABOUT | about | {"checked_by": "ONNX Runtime, node by node", "expected": answer, "tolerance": TOLERANCE}
