"""What a compiled program sends between devices, read from its text."""

import dataclasses
import math
import re
from collections.abc import Iterable

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
"""The collectives that are looked for."""

_LINE = re.compile(rf"=\s+(?P<result>\(.*?\)|\S+)\s+(?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")
_ARRAY = re.compile(r"(?P<type>[a-z]+\d*(?:e\d+m\d+\w*)?)\[(?P<shape>[\d,]*)\]")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_COUNTED = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_NAMED = re.compile(r"replica_groups=mesh\[(?P<sizes>[^\]]*)\][^{]*\{(?P<axes>[^}]*)\}")
_AXIS_SIZE = re.compile(r"'([^']+)'=(\d+)")
_AXIS = re.compile(r"'([^']+)'(?::\(\d+\)(\d+))?")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      kind: One of ``KINDS``.
      arrays: Type and shape of each array that a device ends up with.
      num_devices: Devices that take part together; 0 where the text does not say it.
    """

    kind: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    num_devices: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole arrays: what an all-gather ends with, a reduce-scatter begins with, and all others exchange."""
        total = sum(math.prod(shape) * size_of(kind) for kind, shape in self.arrays)
        return total * max(1, self.num_devices) if self.kind == "reduce-scatter" else total


def size_of(name: str) -> int:
    """Returns the bytes of one number of a type of the compiler, for example ``bf16``.

    Args:
      name: The type.
    """
    if name == "pred":
        return 1
    bits = re.search(r"\d+", name)
    return max(1, int(bits.group()) // 8) if bits else 4


def _group_size(line: str) -> int:
    """Returns how many devices take part together, in any of the three ways in which the text says it; 0 where it does not."""
    listed, counted, named = _LISTED.search(line), _COUNTED.search(line), _NAMED.search(line)
    if listed:
        return len(listed[1].split(","))
    if counted:
        return int(counted[1])
    if not named:
        return 0
    sizes = dict(_AXIS_SIZE.findall(named["sizes"]))
    return math.prod(int(part or sizes[axis]) for axis, part in _AXIS.findall(named["axes"]))


def find_collectives(text: str) -> list[Collective]:
    """Returns the collectives of a compiled program, each once however often a loop runs it; those of one device alone send nothing.

    Args:
      text: What ``compiled.as_text()`` returns.
    """
    found = []
    for line in text.splitlines():
        match = _LINE.search(line)
        if match is None:
            continue
        arrays = [
            (array["type"], tuple(int(size) for size in array["shape"].split(",") if size))
            for array in _ARRAY.finditer(match["result"])
        ]
        if match["start"] and match["kind"] != "all-reduce":  # operands stand before the results
            arrays = arrays[len(arrays) // 2 :]
        num_devices = _group_size(line)
        if num_devices != 1:
            found.append(Collective(match["kind"], tuple(arrays), num_devices))
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
