"""A roofline over a compiled program: every operation takes what its slowest resource takes, loops are multiplied out.

An operation's time is the largest of its matrix time, its elementwise time and its time in main memory. Operations run one after the
other in the order of the schedule. A collective that the compiler has split into a start and a done hides behind what stands between;
others stop everything else. What this leaves out is said in docs/planning.md.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from flaxbert.core.collectives import collective_kind
from flaxbert.core.hlo import Computation, Instruction, Module
from flaxbert.planning.chips import Chip
from flaxbert.planning.links import Interconnect, Transfer, instruction_transfer
from flaxbert.planning.operations import FREE, Work, instruction_work

_CALLS = frozenset({"call", "async-start", "custom-call"})
_CARRIED, _ASYNC_END = "async_collective_fusion", "async-collective-done"
"""How libtpu names fusions that compute while a collective is under way, and the end of that."""

_COPIES = ("copy-start", "slice-start", "dynamic-slice-start")


@dataclasses.dataclass
class CollectiveSum:
    """All collectives of one kind over one kind of link.

    Attributes:
      count: How often one runs in a step.
      size_bytes: Bytes of their arrays per device.
      seconds: Time that they take together.
      exposed_seconds: The part of it that nothing hides.
    """

    count: float = 0.0
    size_bytes: float = 0.0
    seconds: float = 0.0
    exposed_seconds: float = 0.0


@dataclasses.dataclass
class Estimate:
    """What a step costs on each device.

    Attributes:
      seconds: Time of a step.
      flops: FLOPs of its matrix products by the type of their operands.
      operations: Elementwise operations.
      moved_bytes: Bytes to and from main memory.
      matmul_seconds: Time of operations that the matrix unit bounds.
      vector_seconds: Time of operations that elementwise work bounds.
      memory_seconds: Time of operations that main memory bounds.
      copy_seconds: Time of copies to memory on the chip that no computation hides.
      unfilled_seconds: The part of matmul_seconds that goes into filling up the matrix unit.
      collectives: By kind and link.
    """

    seconds: float = 0.0
    flops: dict[str, float] = dataclasses.field(default_factory=dict)
    operations: float = 0.0
    moved_bytes: float = 0.0
    matmul_seconds: float = 0.0
    vector_seconds: float = 0.0
    memory_seconds: float = 0.0
    copy_seconds: float = 0.0
    unfilled_seconds: float = 0.0
    collectives: dict[tuple[str, str], CollectiveSum] = dataclasses.field(default_factory=dict)

    @property
    def total_flops(self) -> float:
        """FLOPs of all matrix products."""
        return sum(self.flops.values())

    @property
    def exposed_seconds(self) -> float:
        """Time of collectives that nothing hides."""
        return sum(found.exposed_seconds for found in self.collectives.values())

    def add(self, other: "Estimate", times: float = 1.0) -> None:
        """Adds what a part of the program costs.

        Args:
          other: The part.
          times: How often it runs.
        """
        for name, value in other.flops.items():
            self.flops[name] = self.flops.get(name, 0.0) + times * value
        for field in dataclasses.fields(self):
            if isinstance(getattr(other, field.name), float):
                setattr(self, field.name, getattr(self, field.name) + times * getattr(other, field.name))
        for key, found in other.collectives.items():
            mine = self.collectives.setdefault(key, CollectiveSum())
            for field in dataclasses.fields(found):
                setattr(mine, field.name, getattr(mine, field.name) + times * getattr(found, field.name))


class _Clock:
    """Time within one computation, with the collectives that are under way; they share the links, so they run one after the other."""

    def __init__(self) -> None:
        self.now, self.copies, self.slack = 0.0, 0.0, 0.0
        self._links_free = 0.0
        self._under_way: dict[str, tuple[float, Transfer]] = {}
        self._by_channel: dict[int, str] = {}

    def start(self, name: str, moved: Transfer, channel: int = 0) -> None:
        end = max(self.now, self._links_free) + moved.seconds
        self._links_free = end
        self._under_way[name] = (end, moved)
        if channel:
            self._by_channel[channel] = name

    def finish_channel(self, channel: int) -> tuple[float, Transfer] | None:
        return self.finish(self._by_channel.get(channel, ""))

    def finish_all(self) -> Iterable[tuple[float, Transfer]]:
        """Ends what nothing in this computation waits for."""
        for name in tuple(self._under_way):
            ended = self.finish(name)
            if ended is not None:
                yield ended

    def finish(self, name: str) -> tuple[float, Transfer] | None:
        if name not in self._under_way:
            return None
        end, moved = self._under_way.pop(name)
        exposed = max(0.0, end - self.now)
        self.now += exposed
        return exposed, moved


class Roofline:
    """Walks a program and adds up what it costs.

    Args:
      module: The program.
      interconnect: Where its devices stand, and their kind.
    """

    def __init__(self, module: Module, interconnect: Interconnect) -> None:
        self._module, self._network = module, interconnect
        self._known: dict[str, Estimate] = {}

    @property
    def _chip(self) -> Chip:
        return self._network.chip

    def estimate(self) -> Estimate:
        """Returns what one run of the program costs on each device.

        Raises:
          HloError: A loop does not say how often it runs.
        """
        return self._computation(self._module.entry)

    def _computation(self, name: str) -> Estimate:
        if name in self._known:
            return self._known[name]
        total, clock = Estimate(), _Clock()
        computation = self._module.computations[name]
        for instruction in computation.instructions:
            self._instruction(instruction, computation, total, clock)
        for ended in clock.finish_all():
            self._record(ended, total)
        hidden = min(clock.copies, clock.slack)
        total.copy_seconds += clock.copies - hidden
        total.seconds = clock.now + clock.copies - hidden
        self._known[name] = total
        return total

    def _instruction(self, instruction: Instruction, computation: Computation, total: Estimate, clock: _Clock) -> None:
        opcode = instruction.opcode
        if opcode in FREE:
            return
        if opcode == "while":
            self._run(self._computation(instruction.called[0]), self._module.trips(instruction), total, clock)
        elif opcode == "conditional":
            branches = [self._computation(name) for name in instruction.called]
            self._run(max(branches, key=lambda branch: branch.seconds), 1, total, clock)
        elif collective_kind(instruction):
            self._collective(instruction, computation, total, clock)
        elif opcode.endswith("-done"):
            self._record(clock.finish(instruction.operands[0]), total)
        elif opcode in _COPIES:
            self._copy(instruction, total, clock)
        elif self._holds_collective(instruction):
            self._wrapped_collective(instruction, computation, total, clock)
        elif opcode in _CALLS and instruction.called:
            for name in instruction.called:
                self._run(self._computation(name), 1, total, clock)
        else:
            self._work(instruction_work(instruction, computation, self._module), total, clock)

    def _copy(self, instruction: Instruction, total: Estimate, clock: _Clock) -> None:
        # A copy gives its result and its source, a slice its source and its result.
        if instruction.opcode == "copy-start":
            moved = sum(array.far_bytes for array in instruction.arrays[:2])
        else:
            source, result = instruction.arrays[:2]
            moved = (0 if source.near else result.size_bytes) + result.far_bytes
        total.moved_bytes += moved
        clock.copies += moved / self._chip.memory_bandwidth

    def _run(self, part: Estimate, times: float, total: Estimate, clock: _Clock) -> None:
        total.add(part, times)
        clock.now += part.seconds * times

    def _work(self, work: Work, total: Estimate, clock: _Clock) -> None:
        chip = self._chip
        matmul = sum(product.seconds(chip) for product in work.products)
        vector, memory = work.operations / chip.vector_operations, chip.memory_seconds(work.moved_bytes)
        seconds = max(matmul, vector, memory)
        for product in work.products:
            total.flops[product.dtype] = total.flops.get(product.dtype, 0.0) + product.flops
        total.operations += work.operations
        total.moved_bytes += work.moved_bytes
        if seconds == matmul:
            full = sum(
                product.flops / product.filled(chip.matrix_tile) * product.seconds(chip) for product in work.products
            )
            total.matmul_seconds += matmul
            total.unfilled_seconds += matmul - full
        elif seconds == vector:
            total.vector_seconds += vector
        else:
            total.memory_seconds += memory
        clock.slack += seconds - memory
        clock.now += seconds + chip.operation_seconds

    def _collective(self, instruction: Instruction, computation: Computation, total: Estimate, clock: _Clock) -> None:
        clock.start(instruction.name, instruction_transfer(instruction, computation, self._network))
        if not instruction.opcode.endswith("-start"):
            self._record(clock.finish(instruction.name), total)

    def _inner_collective(self, name: str) -> tuple[Instruction, Computation] | None:
        computation = self._module.computations[name]
        for instruction in computation.instructions:
            if collective_kind(instruction):
                return instruction, computation
            for called in instruction.called if instruction.opcode in ("fusion", "call", "async-start") else ():
                found = self._inner_collective(called)
                if found:
                    return found
        return None

    def _holds_collective(self, instruction: Instruction) -> bool:
        if instruction.opcode not in ("fusion", "async-start", "call"):
            return False
        return any(self._inner_collective(name) for name in instruction.called)

    def _wrapped_collective(
        self, instruction: Instruction, computation: Computation, total: Estimate, clock: _Clock
    ) -> None:
        """A collective inside a fusion: TPU compilers put it together with the slice of its result, or with a start.

        One that runs beside computations stands in all of their fusions again, under the channel of its start, and in its end.
        """
        for name in instruction.called:
            found = self._inner_collective(name)
            if found is None:
                continue
            channel = found[0].integer("channel_id", 0)
            if _CARRIED in name:
                self._work(instruction_work(instruction, computation, self._module), total, clock)
                return
            if instruction.name.startswith(_ASYNC_END):
                self._record(clock.finish_channel(channel), total)
                return
            moved = instruction_transfer(*found, self._network)
            if moved.kind == "all-reduce" and _keeps_its_part(instruction, found[0], moved):
                moved = dataclasses.replace(moved, kind="reduce-scatter", seconds=moved.seconds / 2)
            clock.start(instruction.name, moved, channel)
            if "start" not in instruction.name.split(".")[0]:
                self._record(clock.finish(instruction.name), total)
            return

    @staticmethod
    def _record(found: tuple[float, Transfer] | None, total: Estimate) -> None:
        if found is None:
            return
        exposed, moved = found
        mine = total.collectives.setdefault((moved.kind, moved.link), CollectiveSum())
        mine.count += 1
        mine.size_bytes += moved.size_bytes
        mine.seconds += moved.seconds
        mine.exposed_seconds += exposed


def _keeps_its_part(fusion: Instruction, collective: Instruction, moved: Transfer) -> bool:
    """Returns whether a fusion gives back a device's own part of what was added up over all."""
    return fusion.size * moved.group_size <= collective.size + moved.group_size


def estimate_step(module: Module, interconnect: Interconnect) -> Estimate:
    """Returns what one run of a program costs on each device.

    Args:
      module: The program, from ``parse_module``.
      interconnect: Where its devices stand, and their kind.

    Raises:
      HloError: A loop does not say how often it runs.
    """
    return Roofline(module, interconnect).estimate()


def _plain(dimensions: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(size for size in dimensions if size != 1))


def activation_gathers(
    module: Module, interconnect: Interconnect, weights: Iterable[Sequence[int]], least_elements: int
) -> Mapping[str, tuple[int, ...]]:
    """Returns the all-gathers and all-to-alls of what is no weight, by instruction, with the sizes of the axes.

    Weights are put together over fsdp by design; the batch and hidden states never are.

    Args:
      module: The program.
      interconnect: Where its devices stand.
      weights: Shapes of the weights as a device multiplies by them; axes are compared in any order, those of size 1 and the first (of
        stacked layers) may be missing.
      least_elements: Arrays with fewer elements are left out, such as statistics of a loss.
    """
    known = {_plain(shape) for shape in weights} | {_plain(shape[1:]) for shape in weights if len(shape) > 1}
    found = {}
    for computation in module.computations.values():
        for instruction in computation.instructions:
            if collective_kind(instruction) not in ("all-gather", "all-to-all"):
                continue
            if instruction_transfer(instruction, computation, interconnect).group_size < 2:
                continue
            whole = instruction.arrays[-len(instruction.operands) :]  # a start gives its operands first
            for array in whole:
                if array.size >= least_elements and _plain(array.dimensions) not in known:
                    found[instruction.name] = array.dimensions
    return found
