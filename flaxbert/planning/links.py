"""Collectives: which devices talk, over which links, how many bytes, how long."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from flaxbert.core.collectives import collective_kind, first_group
from flaxbert.core.hlo import Computation, Instruction
from flaxbert.planning.chips import Chip

HOP_SECONDS = 1e-6
"""Latency of a hop over a link of the torus or the switch (jax-ml/scaling-book sharding.md)."""

OUTER_HOP_SECONDS = 2e-5
"""Latency of a message between slices or nodes, an order of magnitude above that inside."""


@dataclasses.dataclass(frozen=True)
class Interconnect:
    """Where devices stand.

    Attributes:
      chip: Their kind.
      coordinates: Place of each device of the mesh in its slice, by its number in the program; one column an axis of the torus.
      slices: Number of the slice or node of each device.
      shape: Size of a slice along each axis.
    """

    chip: Chip
    coordinates: np.ndarray
    slices: np.ndarray
    shape: tuple[int, ...]

    def _axis_bandwidth(self, places: np.ndarray, size: int) -> tuple[float, int]:
        """Returns bytes per second along one axis of the torus for devices at some places of it, and how many hops the longest way has."""
        found = np.unique(places)
        if len(found) == 1:
            return 0.0, 0
        step = int(np.gcd.reduce(np.diff(found)))
        # Groups that stand between each other share the links.
        one_way = self.chip.link_bandwidth / step
        ring = bool(self.chip.ring_multiple) and size % self.chip.ring_multiple == 0 and len(found) * step == size
        return (2.0 * one_way, size // 2) if ring else (one_way, int(found[-1] - found[0]))

    def inner(self, group: Sequence[int]) -> tuple[float, int]:
        """Returns bytes per second that each device of a group inside one slice can gather, and the hops of the longest way.

        Args:
          group: Numbers of the devices.
        """
        if not self.chip.ring_multiple:
            return self.chip.link_bandwidth, 1
        places = self.coordinates[np.asarray(group)]
        axes = [self._axis_bandwidth(places[:, axis], size) for axis, size in enumerate(self.shape)]
        extents = [len(np.unique(places[:, axis])) for axis in range(places.shape[1])]
        used = [axis for axis in axes if axis[0]]
        if not used:
            return self.chip.link_bandwidth, 1
        if math.prod(extents) != len(group):  # no box of the torus: as if there were one axis
            return min(axis[0] for axis in used), sum(axis[1] for axis in used)
        return sum(axis[0] for axis in used), sum(axis[1] for axis in used)


@dataclasses.dataclass(frozen=True)
class Transfer:
    """One collective.

    Attributes:
      kind: Its opcode.
      link: ici (inside a slice, or a node of GPUs) or dcn (between slices or nodes).
      size_bytes: Bytes of the array that each device puts in or, for all-gather, gets.
      group_size: Devices that take part together.
      seconds: How long it takes when nothing else uses the links.
    """

    kind: str
    link: str
    size_bytes: float
    group_size: int
    seconds: float


def _ring_factor(kind: str, count: int) -> float:
    """Returns the share of an array that a device sends: twice for all-reduce, which scatters and gathers."""
    share = (count - 1) / count
    return {"all-reduce": 2 * share, "collective-permute": 1.0, "collective-broadcast": 1.0}.get(kind, share)


def transfer(kind: str, size_bytes: float, group: Sequence[int], interconnect: Interconnect) -> Transfer:
    """Returns how long a collective takes by the ring model (jax-ml/scaling-book sharding.md).

    An array of ``V`` bytes over ``n`` devices with ``W`` bytes per second each takes ``(n - 1) / n * V / W`` to gather or scatter and twice
    that to reduce for all. Between slices only a slice's share of the array travels over the outer links, after it was reduced inside.

    Args:
      kind: Opcode.
      size_bytes: As for ``Transfer``.
      group: Devices that take part.
      interconnect: Where they stand.
    """
    count, numbers = len(group), np.asarray(group)
    if count < 2:
        return Transfer(kind, "ici", size_bytes, count, 0.0)
    slices = np.unique(interconnect.slices[numbers])
    inside = numbers[interconnect.slices[numbers] == slices[0]]
    seconds = 0.0
    if len(inside) > 1:
        bandwidth, hops = interconnect.inner(inside.tolist())
        factor = _ring_factor(kind, len(inside))
        if kind == "all-to-all" and interconnect.chip.ring_multiple:
            factor *= len(inside) / 4  # every part crosses a quarter of a ring on average
        rounds = 2 if kind == "all-reduce" else 1
        seconds += factor * size_bytes / bandwidth + rounds * hops * HOP_SECONDS
    if len(slices) > 1:
        share = size_bytes / len(inside)
        seconds += _ring_factor(kind, len(slices)) * share / interconnect.chip.outer_bandwidth
        seconds += 2 * (len(slices) - 1) * OUTER_HOP_SECONDS
    return Transfer(kind, "dcn" if len(slices) > 1 else "ici", size_bytes, count, seconds)


def instruction_transfer(instruction: Instruction, computation: Computation, interconnect: Interconnect) -> Transfer:
    """Returns the transfer of a collective.

    Args:
      instruction: A collective, or its start.
      computation: Where it stands.
      interconnect: Where the devices stand.
    """
    kind = collective_kind(instruction)
    known: Mapping[str, Instruction] = computation.by_name
    put_in = sum(known[name].size_bytes for name in instruction.operands if name in known)
    size = float(put_in)
    if kind == "all-gather":
        result = sum(array.size_bytes for array in instruction.arrays)
        size = float(result - put_in if instruction.opcode.endswith("-start") else result)
    group = first_group(instruction.text) or range(len(interconnect.slices))
    return transfer(kind, size, group, interconnect)
