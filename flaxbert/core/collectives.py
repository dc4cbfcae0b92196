"""What a compiled program sends between devices, read from its text."""

import dataclasses
import math
import re
from collections.abc import Iterable

import numpy as np

from flaxbert.core.hlo import ArrayShape, HloError, Instruction, parse_module

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
"""Opcodes of collectives, without ``-start`` and ``-done``."""

_LISTED = re.compile(r"replica_groups=\{\{([\d,\s]*)\}")
_IOTA = re.compile(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)")
_PAIRS = re.compile(r"source_target_pairs=\{\{([\d,\s]*)\}")
_NAMED = re.compile(
    r"replica_groups=mesh\[(?P<sizes>[^\]]*)\](?:, device_ids=\((?P<order>.*?)\))?\s*\{(?P<axes>[^}]*)\}(?:,|\s|$)"
)
_ORDER = re.compile(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?")
_AXIS_SIZE = re.compile(r"'([^']+)'=(\d+)")
_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      kind: One of ``KINDS``.
      arrays: Type and shape of each array that a device ends up with.
      num_devices: Devices that take part together; 0 where the text does not say it, which means all.
    """

    kind: str
    arrays: tuple[ArrayShape, ...]
    num_devices: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole arrays: what an all-gather ends with, a reduce-scatter begins with, and all others exchange."""
        total = sum(array.size_bytes for array in self.arrays)
        return total * max(1, self.num_devices) if self.kind == "reduce-scatter" else total


def collective_kind(instruction: Instruction) -> str:
    """Returns the collective that an instruction is or starts, or an empty string.

    Args:
      instruction: The instruction.
    """
    kind = instruction.opcode.removesuffix("-start")
    return kind if kind in KINDS else ""


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number.strip())


def _counted_up(text: str) -> np.ndarray:
    """Returns the array that ``[4,2]<=[2,4]T(1,0)`` writes: 0, 1, 2 … in the second shape, transposed, in the first shape."""
    found = _ORDER.search(text)
    if found is None:
        raise HloError(
            f"The devices of a collective are written as '{text}', which this version of flaxbert can not read."
        )
    shape = _numbers(found[1])
    source = _numbers(found[2]) if found[2] else shape
    numbers = np.arange(math.prod(source)).reshape(source)
    if found[3]:
        numbers = numbers.transpose(_numbers(found[3]))
    return numbers.reshape(shape) if found[2] else numbers


def _named_group(sizes: str, order: str | None, axes: str) -> tuple[int, ...]:
    """Returns the first group along named axes of a mesh, or along a part ``'axis':(before)size`` of one."""
    lengths = {name: int(size) for name, size in _AXIS_SIZE.findall(sizes)}
    taken: dict[str, list[tuple[int, int]]] = {name: [] for name in lengths}
    for name, before, size in _AXIS.findall(axes):
        taken[name].append((int(before or 1), int(size or lengths[name])))
    shape: list[int] = []
    along: list[bool] = []
    for name, length in lengths.items():
        done = 1
        for before, size in sorted(taken[name]):
            shape += [before // done, size]
            along += [False, True]
            done = before * size
        shape.append(length // done)
        along.append(False)
    count = math.prod(lengths.values())
    numbers = (_counted_up(order) if order else np.arange(count)).reshape(shape)
    return tuple(int(number) for number in numbers[tuple(slice(None) if mine else 0 for mine in along)].reshape(-1))


def first_group(text: str) -> tuple[int, ...] | None:
    """Returns the devices of the first group of a collective, for permutes the first pair; all groups have the same shape.

    Groups are written in three ways: as lists, as a reshaped and transposed count (``[2,4]<=[8]``), or as axes of a mesh.

    Args:
      text: Attributes of the instruction.

    Returns:
      Numbers of the devices, or None where the text names no groups: then all take part.

    Raises:
      HloError: Groups are written in another way.

    Example:
      >>> first_group("replica_groups=mesh['rows'=2,'columns'=4] {'rows'}")
      (0, 4)
    """
    named = _NAMED.search(text)
    if named:
        return _named_group(named["sizes"], named["order"], named["axes"])
    iota = _IOTA.search(text)
    if iota:
        return tuple(int(number) for number in _counted_up(iota[1])[0])
    listed = _LISTED.search(text) or _PAIRS.search(text)
    return _numbers(listed[1]) if listed else None


def find_collectives(text: str) -> list[Collective]:
    """Returns the collectives of a compiled program, each once however often a loop runs it; those of one device alone send nothing.

    Args:
      text: What ``compiled.as_text()`` returns.

    Raises:
      HloError: The text is no compiled program.
    """
    found = []
    for computation in parse_module(text).computations.values():
        for instruction in computation.instructions:
            kind = collective_kind(instruction)
            if not kind:
                continue
            arrays = instruction.arrays
            if (
                instruction.opcode.endswith("-start") and kind != "all-reduce"
            ):  # operands, results, then perhaps counters
                count = len(instruction.operands)
                arrays = arrays[count : 2 * count]
            group = first_group(instruction.text)
            if group is None or len(group) > 1:
                found.append(Collective(kind, arrays, len(group or ())))
    return found


def summarise(collectives: Iterable[Collective]) -> dict[str, tuple[int, int]]:
    """Returns number and bytes of each kind of collective, in the order of ``KINDS``.

    Args:
      collectives: From ``find_collectives``.
    """
    totals: dict[str, tuple[int, int]] = {}
    listed = list(collectives)
    for kind in KINDS:
        sizes = [collective.size_bytes for collective in listed if collective.kind == kind]
        if sizes:
            totals[kind] = (len(sizes), sum(sizes))
    return totals
