"""An ONNX graph as it grows: nodes, and the constants that they read."""

from __future__ import annotations

from typing import Any

import numpy as np


class Graph:
    """Nodes and constants of an ONNX graph; every value is known by its name.

    Attributes:
      tasks: the leading axis of values that differ by task, once there are some.
      products: inputs and kernels of the products that may be rounded (`jaxface.exports.onnx_int8`), in their order.
    """

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.tasks: int | None = None
        self.products: list[tuple[str, np.ndarray]] = []

    def product(self, x: str, kernel: np.ndarray) -> str:
        """[..., M, in] and a kernel [in, out] (or one per task) -> [..., M, out]"""
        self.products.append((x, kernel))
        return self.add("MatMul", x, self.constant(kernel))

    def add(self, kind: str, *inputs: str, outputs: int = 1, name: str | None = None, **attributes: Any) -> Any:
        """A node; its output's name, or a list of them."""
        from onnx import helper

        names = [name or f"{kind.lower()}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """An array's name."""
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(values, dtype, order="C"), name))
        return name

    def reshape(self, x: str, *shape: int) -> str:
        return self.add("Reshape", x, self.constant(shape, np.int64))

    def swap_last(self, x: str, rank: int) -> str:
        """[..., a, b] -> [..., b, a]"""
        return self.add("Transpose", x, perm=[*range(rank - 2), rank - 1, rank - 2])

    def batched(self, x: str, *shape: int) -> str:
        """[B, ...] or [tasks, B, ...] in another shape behind the batch."""
        return self.reshape(x, *(() if self.tasks is None else (self.tasks,)), -1, *shape)

    @property
    def lead(self) -> int:
        """Axes up to and with the batch."""
        return 1 if self.tasks is None else 2
