"""Reads the text of an optimised HLO module: computations, instructions, shapes, loops."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

from flaxbert.errors import FlaxbertError

ELEMENT_BITS: dict[str, int] = {
    "pred": 8,
    "s2": 2,
    "u2": 2,
    "s4": 4,
    "u4": 4,
    "s8": 8,
    "u8": 8,
    "s16": 16,
    "u16": 16,
    "s32": 32,
    "u32": 32,
    "s64": 64,
    "u64": 64,
    "bf16": 16,
    "f16": 16,
    "f32": 32,
    "f64": 64,
    "c64": 64,
    "c128": 128,
    "token": 0,
    "opaque": 0,
}
"""Bits of an element by its type; an unknown type counts as float8, of which there are many."""

_COMMENT = re.compile(r"/\*.*?\*/")
_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\](\{[^{}]*\})?|\b(token|opaque)\b")
_NAME = re.compile(r"%([\w.\-]+)")
_ASSIGNMENT = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ")
_HEADER = re.compile(r"^\s*(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|branch_computations|true_computation|false_computation)=\{?([^},]*(?:, ?%[^},]+)*)"
)
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_MEMORY_SPACE = re.compile(r"S\((\d+)\)")
_CONSTANT = re.compile(r"constant\((-?\d+)\)")


class HloError(FlaxbertError, ValueError):
    """The text of a compiled program is not what this version of flaxbert can read."""


@dataclasses.dataclass(frozen=True)
class ArrayShape:
    """One array of an instruction's result.

    Attributes:
      dtype: Type of an element.
      dimensions: Sizes of the axes.
      near: Whether it lies in memory on the chip (TPU: any memory space but the main one), so that the main memory is not touched.
    """

    dtype: str
    dimensions: tuple[int, ...]
    near: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dimensions)

    @property
    def size_bytes(self) -> int:
        """Bytes, without the padding of tiled layouts."""
        return -(-self.size * ELEMENT_BITS.get(self.dtype, 8) // 8)

    @property
    def far_bytes(self) -> int:
        """Bytes in main memory."""
        return 0 if self.near else self.size_bytes


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
      name: Its name, unique in the module.
      opcode: What it does.
      arrays: Its result, tuples taken apart.
      operands: Names of its operands.
      text: Everything after the opcode.
    """

    name: str
    opcode: str
    arrays: tuple[ArrayShape, ...]
    operands: tuple[str, ...]
    text: str

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it runs, without the condition of a loop."""
        return tuple(
            name for found in _CALLED.findall(self.text) for name in re.findall(r"%?([\w.\-]+)", found) if name
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of its result."""
        return sum(array.size_bytes for array in self.arrays)

    @property
    def far_bytes(self) -> int:
        """Bytes of its result in main memory."""
        return sum(array.far_bytes for array in self.arrays)

    @property
    def size(self) -> int:
        """Elements of its result."""
        return sum(array.size for array in self.arrays)

    def integers(self, attribute: str) -> tuple[int, ...]:
        """Returns a list of integers such as ``lhs_contracting_dims={1}``, empty where there is none.

        Args:
          attribute: Its name.
        """
        found = re.search(rf"\b{attribute}=\{{([\d,\s]*)\}}", self.text)
        return tuple(int(number) for number in found[1].split(",") if number.strip()) if found else ()

    def integer(self, attribute: str, default: int) -> int:
        """Returns an integer attribute.

        Args:
          attribute: Its name.
          default: Value where there is none.
        """
        found = re.search(rf"\b{attribute}=(\d+)", self.text)
        return int(found[1]) if found else default


@dataclasses.dataclass(frozen=True)
class Computation:
    """A list of instructions in the order in which they run.

    Attributes:
      name: Its name.
      instructions: The instructions.
      root: Name of the one that gives the result.
    """

    name: str
    instructions: tuple[Instruction, ...]
    root: str

    @functools.cached_property
    def by_name(self) -> Mapping[str, Instruction]:
        """The instructions by name."""
        return {instruction.name: instruction for instruction in self.instructions}

    @functools.cached_property
    def users(self) -> Mapping[str, tuple[Instruction, ...]]:
        """The instructions that read each one."""
        found: dict[str, list[Instruction]] = {}
        for instruction in self.instructions:
            for name in dict.fromkeys(instruction.operands):
                found.setdefault(name, []).append(instruction)
        return {name: tuple(users) for name, users in found.items()}

    def parameters(self) -> list[Instruction]:
        """Returns the parameters in their order."""
        found = [instruction for instruction in self.instructions if instruction.opcode == "parameter"]
        return sorted(found, key=lambda parameter: int(parameter.text.split(")", 1)[0].lstrip("(")))


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program.

    Attributes:
      computations: All computations by name.
      entry: Name of the one that runs.
    """

    computations: Mapping[str, Computation]
    entry: str

    def trips(self, loop: Instruction) -> int:
        """Returns how often the body of a loop runs.

        The compiler's own count where it is known; else the bound that the condition compares with.

        Args:
          loop: A ``while`` instruction.

        Raises:
          HloError: Neither says it.
        """
        known = _TRIPS.search(loop.text)
        if known:
            return int(known[1])
        condition = _CONDITION.search(loop.text)
        bounds = self._bounds(condition[1]) if condition else set()
        if len(bounds) != 1:
            raise HloError(
                f"The loop {loop.name} of the compiled program does not say how often it runs, so its cost is not known."
            )
        return bounds.pop()

    def _bounds(self, name: str) -> set[int]:
        found: set[int] = set()
        for instruction in self.computations[name].instructions:
            constant = _CONSTANT.match(instruction.opcode + instruction.text)
            if constant and instruction.arrays and instruction.arrays[0].dimensions == ():
                found.add(int(constant[1]))
            for called in instruction.called:
                found |= self._bounds(called)
        return found


def _closing(text: str, start: int) -> int:
    """Returns the place behind the bracket that closes the one at ``start``."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] == "(":
            depth += 1
        elif text[place] == ")":
            depth -= 1
            if not depth:
                return place + 1
    raise HloError(f"A bracket does not close in '{text[:120]}'.")


def parse_arrays(text: str) -> tuple[ArrayShape, ...]:
    """Returns the arrays of a type such as ``(f32[2,3]{1,0}, s32[])``.

    Args:
      text: The type.

    Example:
      >>> parse_arrays("bf16[8,4]{1,0:T(8,128)S(1)}")
      (ArrayShape(dtype='bf16', dimensions=(8, 4), near=True),)
    """
    found = []
    for dtype, dimensions, layout, bare in _ARRAY.findall(text):
        space = _MEMORY_SPACE.search(layout)
        sizes = tuple(int(size.lstrip("<=")) for size in dimensions.split(",") if size)
        found.append(ArrayShape(dtype or bare, sizes, bool(space and space[1] != "0")))
    return tuple(found)


def _parse_instruction(line: str, assignment: re.Match[str]) -> Instruction:
    rest = line[assignment.end() :]
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    text = rest[len(opcode) :]
    end = _closing(text, 0)
    operands = () if opcode in ("constant", "parameter", "iota") else tuple(_NAME.findall(text[:end]))
    return Instruction(assignment[2], opcode.strip(), parse_arrays(kind), operands, text)


def parse_module(text: str) -> Module:
    """Reads the text of a module, as ``compiled.as_text()`` gives it.

    Args:
      text: Optimised HLO.

    Returns:
      The module.

    Raises:
      HloError: The text is no module, or has no entry.
    """
    computations: dict[str, Computation] = {}
    entry, name, root, instructions = "", "", "", []
    for raw in text.splitlines():
        line = _COMMENT.sub("", raw)
        assignment = _ASSIGNMENT.match(line)
        if assignment and name:
            instruction = _parse_instruction(line, assignment)
            instructions.append(instruction)
            root = instruction.name if assignment[1] else root
            continue
        header = _HEADER.match(line)
        if header and not line.startswith("HloModule"):
            name, root, instructions = header[2], "", []
            entry = name if header[1] else entry
        elif line.strip() == "}" and name:
            computations[name] = Computation(
                name, tuple(instructions), root or (instructions[-1].name if instructions else "")
            )
            name = ""
    if not entry or entry not in computations:
        raise HloError("The compiled program has no entry computation; its text is not optimised HLO.")
    return Module(computations, entry)
