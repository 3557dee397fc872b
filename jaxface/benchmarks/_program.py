"""FLOPs and bytes of a compiled program, loops counted as often as they run.

`cost_analysis` sees the body of a loop once, and our blocks are the body of a loop. The same counts are made here from the program's
text, where each loop says how often it runs; counted once each, they are what `cost_analysis` gives, which says that they can be trusted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

SIZES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "call",
    "conditional",
    "after-all",
    "opt-barrier",
    "fusion-done",
}
"""Operations that move nothing themselves."""

_SHAPE = re.compile(r"\b(" + "|".join(SIZES) + r")\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?(%[\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
_COMPUTATION = re.compile(r"^(?:ENTRY )?(%[\w.-]+) \(.*\{$")
_CALLED = re.compile(r"(?:calls|to_apply|body)=(%[\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CONTRACTED = re.compile(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)[}\]]')
"""Of a dot, or of a call of cuBLAS that a dot became."""


def shapes_in(shape: str) -> Iterator[tuple[str, list[int], int]]:
    """The arrays of a type: kind of value, sides, bytes of a value."""
    for kind, sides in _SHAPE.findall(shape):
        yield kind, [int(side) for side in filter(None, sides.split(","))], SIZES[kind]


def _bytes(shape: str) -> int:
    return sum(size * math.prod(sides) for _, sides, size in shapes_in(shape))


def trips_of(loop: Instruction) -> int:
    """How often a loop's body runs, 1 where the program does not say."""
    trips = _TRIPS.search(loop.rest)
    return int(trips[1]) if trips else 1


def _sides(shape: str) -> list[list[int]]:
    return [sides for _, sides, _ in shapes_in(shape)]


@dataclass(frozen=True)
class Instruction:
    """One line of a program."""

    name: str
    shape: str
    kind: str
    arguments: str
    rest: str

    @cached_property
    def operands(self) -> list[str]:
        return re.findall(r"%[\w.-]+", self.arguments)

    @property
    def called(self) -> list[str]:
        """Computations that run when it does."""
        branches = _BRANCHES.search(self.rest)
        return _CALLED.findall(self.rest) + (branches[1].split(", ") if branches else [])


@dataclass(frozen=True)
class Count:
    """What a program does, each loop as often as it runs, and (`once`) as often as it is written."""

    flops: float
    bytes: float
    flops_once: float
    bytes_once: float


@dataclass
class Program:
    """A compiled program's text, read into computations."""

    computations: dict[str, dict[str, Instruction]] = field(default_factory=dict)
    entry: str = ""

    @classmethod
    def of(cls, text: str) -> Program:
        program, current = cls(), None
        for line in text.splitlines():
            if start := _COMPUTATION.match(line):
                current = program.computations[start[1]] = {}
                program.entry = start[1] if line.startswith("ENTRY") else program.entry
            elif current is not None and (found := _INSTRUCTION.match(line)):
                name, shape, kind, rest = found.groups()
                if kind == "fusion-start":  # ((operands), results, context): one that others run beside
                    kind, shape = "fusion", shape.partition("), ")[2].rpartition(", ")[0]
                arguments, _, attributes = rest.partition(")")
                current[name] = Instruction(name, shape, kind, arguments, attributes)
        return program

    def count(self) -> Count:
        """FLOPs of all matrix products (2 x multiply-adds), and bytes read and written by operations that are not fused into another."""
        totals = [0.0] * 4
        for computation, times, fused in self.visits():
            flops, moved = self._own[computation]
            moved = 0 if fused else moved
            for index, value in enumerate((flops * times, moved * times, flops, moved)):
                totals[index] += value
        return Count(*totals)

    def visits(self, name: str = "", times: int = 1, fused: bool = False) -> Iterator[tuple[str, int, bool]]:
        """Every computation that runs (from the named one on) with how often, and whether it is the inside of another operation."""
        name = name or self.entry
        yield name, times, fused
        for instruction in self.computations[name].values():
            turns = times * (trips_of(instruction) if instruction.kind == "while" else 1)
            inside = fused or instruction.kind not in ("while", "call", "conditional")
            for called in instruction.called:
                yield from self.visits(called, turns, inside)

    @cached_property
    def _own(self) -> dict[str, tuple[float, float]]:
        """FLOPs and bytes of each computation's own lines."""
        found = {}
        for name, lines in self.computations.items():
            flops = sum(self._product(line, lines) for line in lines.values())
            found[name] = flops, float(sum(self.moved(line, lines) for line in lines.values() if line.kind not in FREE))
        return found

    def flops(self, line: Instruction, lines: dict[str, Instruction]) -> float:
        """Of one run of an operation among the lines of its computation, with what is fused into it."""
        return self._product(line, lines) + sum(self._own[called][0] for called in line.called)

    @staticmethod
    def _product(line: Instruction, lines: dict[str, Instruction]) -> float:
        """FLOPs of a matrix product, 0 of anything else."""
        if line.kind not in ("dot", "custom-call") or not _CONTRACTED.search(line.rest):
            return 0.0
        left = _sides(lines[line.operands[0]].shape)[0]
        contracted = [left[int(axis)] for axis in re.findall(r"\d+", _CONTRACTED.search(line.rest)[1])]
        return 2.0 * math.prod(_sides(line.shape)[0]) * math.prod(contracted)

    def moved(self, line: Instruction, lines: dict[str, Instruction]) -> int:
        """Bytes read and written: of a slice the part that is cut out, of an update in place the part that is new."""
        if line.kind in ("dynamic-slice", "slice"):
            return 2 * _bytes(line.shape)
        if line.kind == "dynamic-update-slice":
            return 2 * _bytes(lines[line.operands[1]].shape)
        read, written = [_bytes(lines[name].shape) for name in line.operands], _bytes(line.shape)
        inside = self.computations[line.called[0]] if line.kind == "fusion" else {}
        needed = _needed(inside)
        for parameter in (inner for inner in inside.values() if inner.kind == "parameter"):
            names, index = [parameter.name], int(parameter.arguments)
            names += [inner.name for inner in inside.values() if inner.kind == "bitcast" and inner.operands == names]
            users = [inner for inner in inside.values() if set(names) & set(inner.operands) and inner.name not in names]
            if users and all(user.kind == "dynamic-update-slice" and user.operands[0] in names for user in users):
                written -= read[index] - sum(_bytes(inside[user.operands[1]].shape) for user in users)
                read[index] = 0
            else:
                read[index] = round(read[index] * needed.get(parameter.name, 1))
        return sum(read) + written


SLICES = ("slice", "dynamic-slice")
POINTWISE = {"bitcast", "reshape", "copy", "transpose"}
"""Operations of another shape than their operand, of which they need as large a share as is needed of them."""


def _needed(inside: dict[str, Instruction]) -> dict[str, float]:
    """Of every line of a fused computation the share of its values that is read: a slice reads its part, through what is pointwise."""
    shares: dict[str, float] = {}
    users: dict[str, list[Instruction]] = {}
    for line in inside.values():
        for operand in set(line.operands):
            users.setdefault(operand, []).append(line)
    for line in reversed(inside.values()):
        cut, whole = 0.0, 0.0
        for user in users.get(line.name, ()):
            own = shares[user.name]
            sizes = _bytes(user.shape) / max(1, _bytes(line.shape))
            if user.kind in SLICES and user.operands[0] == line.name:
                cut += own * sizes
            else:
                alike = user.kind in POINTWISE or _sides(user.shape) == _sides(line.shape)
                whole = max(whole, own if alike else 1.0)
        shares[line.name] = min(1.0, max(cut, whole)) if line.name in users else 1.0
    return shares


def count(compiled: Any) -> Count:
    """What a compiled program does."""
    return Program.of(compiled.as_text()).count()
