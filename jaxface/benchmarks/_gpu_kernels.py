"""What the kernels of one block read and write, from the text of a program compiled for a graphics card.

Bytes are those that each kernel reads and writes: of arrays stacked over blocks the one slice that it touches; scratch memory of products
is not counted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxface.benchmarks._program import FREE, Instruction, Program, shapes_in, trips_of
from jaxface.models.blocks import BLOCK
from jaxface.models.variants import EncoderConfig

ATTENDS, PRODUCT = re.compile(r"dot_product|fmha|cudnn|pallas"), re.compile(r"gemm|cublas|triton|^custom-call")
KINDS = PRODUCTS, ATTENTION, SUMS, PASSES, COPIES = "products", "attention", "norms and sums", "elementwise", "copies"
"""Kinds of kernels: by name the first two, by what is inside the others: whether it sums, calculates, or only moves."""
MOVES = FREE | {
    "copy",
    "slice",
    "pad",
    "concatenate",
    "transpose",
    "reshape",
    "broadcast",
    "dynamic-slice",
    "dynamic-update-slice",
    "fusion",
}
"""Operations that calculate nothing with what they move (a fusion for itself: what is inside is looked at)."""
NARROW = 96
"""Channels that no array of activations in a block has fewer of, but those of adapters."""


@dataclass(frozen=True)
class Kernel:
    """A kernel of the blocks.

    Attributes:
      name: in the program.
      result: type and shape.
      bytes: read and written at one turn of the loop.
      kind: of operation, of `KINDS`.
      flops: of products, and of attention's two or, backward, five.
      wide32: whether it multiplies activations of a whole batch in float32, which costs more than twice the time.
    """

    name: str
    result: str
    bytes: int
    kind: str
    flops: float
    wide32: bool

    @property
    def product(self) -> bool:
        """Whether it multiplies matrices, or attends."""
        return self.kind in (PRODUCTS, ATTENTION)


def block_kernels(program: Program, wide: int) -> Iterator[tuple[int, Kernel]]:
    """How often, and which kernel, for all kernels of the blocks: those in the loops of a compiled program, and outside of loops those that
    the blocks' name stands on, or none (copies that the compiler adds).

    Args:
      wide: values from which on an array is one of activations of a whole batch.
    """
    found: list[tuple[int, Kernel]] = []
    lines = program.computations[program.entry]
    for line in lines.values():
        if line.kind == "while" and (trips := trips_of(line)) > 1:
            body = program.computations[line.called[0]]
            found += [(trips, _kernel(program, inner, body, wide)) for inner in body.values() if inner.kind not in FREE]
    if not found:
        found = [(1, _kernel(program, line, lines, wide)) for line in _of_blocks(lines)]
    yield from found


def _of_blocks(lines: dict[str, Instruction]) -> Iterator[Instruction]:
    """The kernels that the blocks' name stands on, and nameless ones (the compiler's own) beside them."""
    named = {name: re.search(r'op_name="([^"]*)"', line.rest) for name, line in lines.items()}
    ours = {name for name, found in named.items() if found and re.search(rf"\b{BLOCK}\b", found[1])}
    beside = {operand for name in ours for operand in lines[name].operands}
    for name, line in lines.items():
        nameless = not named[name] and (name in beside or not ours.isdisjoint(line.operands))
        if line.kind not in FREE and (name in ours or nameless):
            yield line


def _kernel(program: Program, line: Instruction, lines: dict[str, Instruction], wide: int) -> Kernel:
    name, results, kind = line.name.lstrip("%"), list(shapes_in(line.shape)), _kind(program, line)
    product = kind in (PRODUCTS, ATTENTION)
    scratch = sum(size * math.prod(sides) for of, sides, size in results if product and len(results) > 1 and of in ("s8", "u8"))
    arrays = [array for shape in (*(lines[operand].shape for operand in line.operands), line.shape) for array in shapes_in(shape)]
    large = {of for of, sides, _ in arrays if math.prod(sides) >= wide}
    flops = _attention_flops(line.shape) if kind == ATTENTION else program.flops(line, lines)
    return Kernel(name, line.shape, program.moved(line, lines) - scratch, kind, flops, kind == PRODUCTS and "f32" in large)


def _attention_flops(shape: str) -> float:
    """By its results: one array [B, H, N, d] forward, three gradients backward, where the weights are formed again."""
    sides = [found for _, found, _ in shapes_in(shape) if len(found) == 4]
    if not sides:
        return 0.0
    batch, heads, tokens, width = sides[0]
    return 2.0 * (5 if len(sides) > 2 else 2) * batch * heads * tokens**2 * width


def _kind(program: Program, line: Instruction) -> str:
    name = line.name.lstrip("%")
    if ATTENDS.search(name):
        return ATTENTION
    if PRODUCT.search(name) or line.kind == "custom-call":
        return PRODUCTS
    inside = {line.kind} | {
        inner.kind for called in line.called for found, *_ in program.visits(called) for inner in program.computations[found].values()
    }
    return SUMS if "reduce" in inside else COPIES if inside <= MOVES else PASSES


def describe(compiled: Any, encoder: EncoderConfig, images: int) -> tuple[dict[str, Any], list[Kernel]]:
    """A compiled step's figures, and all kernels of one block's forward and backward pass."""
    wide = images * (encoder.grid**2 + encoder.prefix) * NARROW
    found, depth = list(block_kernels(Program.of(compiled.as_text()), wide)), encoder.depth
    memory = compiled.memory_analysis()
    by_kind, flops = dict.fromkeys(KINDS, 0.0), dict.fromkeys((PRODUCTS, ATTENTION), 0.0)
    for times, kernel in found:
        by_kind[kernel.kind] += times * kernel.bytes / depth
        if kernel.product:
            flops[kernel.kind] += times * kernel.flops / depth

    def per_block(kernels: list[tuple[int, Kernel]]) -> tuple[float, float]:
        return sum(times * kernel.bytes for times, kernel in kernels) / depth, sum(times for times, _ in kernels) / depth

    (bytes_, kernels), (product_bytes, _) = per_block(found), per_block([entry for entry in found if entry[1].product])
    return {
        "bytes_per_block": round(bytes_),
        "product_bytes_per_block": round(product_bytes),
        "bytes_by_kind": {kind: round(moved) for kind, moved in by_kind.items()},
        "flops_by_kind": flops,
        "kernels_per_block": round(kernels, 2),
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "float32_products": sorted(kernel.name for _, kernel in found if kernel.wide32),
    }, [kernel for _, kernel in found]
