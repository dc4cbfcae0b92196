"""Compiles the training step of a run for meshes of a topology and says what each would cost."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from flaxbert.config import MeshConfig
from flaxbert.core.hlo import parse_module
from flaxbert.core.sharding import FSDP, batch_ways, build_mesh, check_mesh_fits
from flaxbert.errors import MemoryLimitError, MeshError, ShapeError
from flaxbert.planning.chips import Chip
from flaxbert.planning.roofline import Estimate, activation_gathers, estimate_step
from flaxbert.planning.topology import Topology, find_devices, make_interconnect
from flaxbert.planning.workloads import Workload
from flaxbert.train.memory import BatchPlan, StepMemory, estimate_step_memory, find_batch_size
from flaxbert.train.recipes.plan import StepJob, batch_shapes, lower_step, state_shapes

Say = Callable[[str], None]

_NEEDED = re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", re.IGNORECASE)
_LEAST_TOKENS = 1024
"""Tokens of a row that each device should have before a search splits rows."""

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Ran out of memory", "out of memory")


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device while a step runs.

    Attributes:
      parameters: Parameters, trained and frozen.
      optimizer: State of the optimizer.
      batch: The batch.
      activations: The part of the scratch that grows with the batch.
      temporaries: The rest of the scratch: gradients, and weights in the form that they are multiplied in.
      total: All of it, and what else the compiler counts.
      limit: What a program can use.
    """

    parameters: int
    optimizer: int
    batch: int
    activations: int
    temporaries: int
    total: int
    limit: int

    @property
    def fits(self) -> bool:
        """Whether the step fits."""
        return self.total <= self.limit


@dataclasses.dataclass(frozen=True)
class MeshPlan:
    """What a step costs on one mesh.

    Attributes:
      mesh: Sizes of the axes.
      batch_size: Examples per optimizer step over all devices.
      accumulation_steps: Micro batches per step.
      memory: Bytes on each device.
      estimate: Work, traffic and time; None where the compiler refused the step because it does not fit.
      largest_batch: Largest batch per device and micro batch that fits, compiled to be sure; 0 where none does, -1 where not looked for.
      tokens_per_step: Tokens of a step over all devices.
      model_flops: FLOPs of the model itself in a step, over all devices.
      peak_flops: Of all devices together.
      gathered_activations: All-gathers of the batch, which the design does not ask for.
      num_steps: Steps of the run with batches of this shape; 0 where only its data would tell.
    """

    mesh: dict[str, int]
    batch_size: int
    accumulation_steps: int
    memory: Memory
    estimate: Estimate | None
    largest_batch: int
    tokens_per_step: int
    model_flops: float
    peak_flops: float
    gathered_activations: tuple[str, ...] = ()
    num_steps: int = 0

    @property
    def num_devices(self) -> int:
        """Devices of the mesh."""
        return math.prod(self.mesh.values())

    @property
    def batch_per_device(self) -> int:
        """Examples of a micro batch on each group of devices that holds the same rows."""
        return self.batch_size // self.accumulation_steps // (self.mesh["data"] * self.mesh["fsdp"])

    @property
    def utilization(self) -> float:
        """MFU: FLOPs of the model over what the devices could do in the estimated time."""
        return self.model_flops / (self.estimate.seconds * self.peak_flops) if self.estimate else 0.0

    @property
    def tokens_per_second_per_device(self) -> float:
        """Tokens per second and device in the estimated time."""
        return self.tokens_per_step / self.estimate.seconds / self.num_devices if self.estimate else 0.0

    @property
    def run_seconds(self) -> float:
        """Time of all steps of this shape; 0 where their number is not known, or the time of one."""
        return self.num_steps * self.estimate.seconds if self.estimate else 0.0


@dataclasses.dataclass(frozen=True)
class _Compiled:
    memory: StepMemory | None
    needed: int
    text: str


class Planner:
    """Plans a run on a topology.

    Args:
      workload: The run.
      topology: The devices; ``prepare_process`` was called for it.
      chip: Their peaks.
      say: Where lines about progress go.
      compiler_options: Options of the compiler beside its own.
    """

    def __init__(
        self,
        workload: Workload,
        topology: Topology,
        chip: Chip,
        say: Say = print,
        compiler_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.workload, self.topology, self.chip, self._say = workload, topology, chip, say
        self._options = dict(compiler_options or {})
        self._devices = find_devices(topology)
        self._known: dict[tuple[Any, ...], _Compiled] = {}

    def mesh(self, config: MeshConfig) -> Mesh:
        """Returns a mesh of the topology.

        Args:
          config: Sizes of its axes.

        Raises:
          MeshError: They do not multiply to the devices.
        """
        return build_mesh(config, self._devices)

    def batch_plan(self, config: MeshConfig, rows: int = 0) -> BatchPlan:
        """Returns how the batch of a step is cut.

        Args:
          config: Sizes of the axes of the mesh.
          rows: Examples of a micro batch on each group of devices that holds the same rows; 0: what the run says, and where it leaves that
            to the memory that there is, as many as fit. Otherwise the run's number of micro batches stays; where it is auto, the batch
            stays as near as it can.

        Where not even one example on each device fits, it is one.

        Raises:
          ConfigError: The batch can not be split over the devices.
        """
        train, size = self.workload.train, self.workload.batch_size
        mesh = self.mesh(config)
        ways = batch_ways(mesh)
        if rows:
            steps = train.fixed_accumulation_steps
            if train.accumulation_steps == "auto":
                steps = max(1, round(size / (rows * ways)))
            return BatchPlan(rows * ways * steps, rows * ways, ways)
        if not train.finds_micro_batch:
            return BatchPlan(size, size // train.fixed_accumulation_steps, ways)

        def compile_for(micro_batch: int, accumulation_steps: int) -> StepMemory:
            del accumulation_steps  # follows from the micro batch
            found = self._compile(mesh, size, micro_batch)
            needed = max(found.needed, self.chip.memory_bytes + 1)
            return found.memory or StepMemory(argument=0, output=0, temporary=needed, total=needed)

        try:
            return find_batch_size(size, compile_for, self.chip.memory_bytes, batch_ways=ways)
        except MemoryLimitError:
            return BatchPlan(size, ways, ways)

    def _compile(self, mesh: Mesh, batch_size: int, micro_batch: int) -> _Compiled:
        key = (tuple(mesh.shape.items()), batch_size, micro_batch)
        if key not in self._known:
            self._known[key] = self._compile_anew(mesh, batch_size, micro_batch)
        return self._known[key]

    def _compile_anew(self, mesh: Mesh, batch_size: int, micro_batch: int) -> _Compiled:
        axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1) or "one device"
        self._say(f"Compiling {axes}, {micro_batch} examples at once…")
        job = self.workload.job(mesh, batch_size)
        lowered = lower_step(job, micro_batch)
        try:
            with jax.set_mesh(mesh):
                compiled = lowered.compile(self._options or None)
        except jax.errors.JaxRuntimeError as error:
            if not any(word in str(error) for word in _OUT_OF_MEMORY):
                raise
            needed = _NEEDED.search(str(error))
            return _Compiled(None, int(float(needed[1]) * _UNITS[needed[2].upper()]) if needed else 0, "")
        memory = estimate_step_memory(compiled)
        return _Compiled(memory, memory.total, compiled.as_text())

    def _scratch_slope(self, mesh: Mesh, batch_size: int, micro_batch: int) -> float:
        """Returns the bytes of scratch that each example on a device adds, from two compiled sizes; 0 where one does not fit."""
        ways = batch_ways(mesh)
        rows = micro_batch // ways
        other_rows = rows // 2 or 2
        whole = self._compile(mesh, batch_size, micro_batch)
        other = self._compile(mesh, other_rows * ways, other_rows * ways)
        if whole.memory is None or other.memory is None:
            return 0.0
        return max(0.0, (whole.memory.temporary - other.memory.temporary) / (rows - other_rows))

    def _memory(self, mesh: Mesh, batch_size: int, micro_batch: int, slope: float) -> Memory:
        compiled = self._compile(mesh, batch_size, micro_batch)
        job = self.workload.job(mesh, batch_size)
        state = state_shapes(job)
        rows = micro_batch // batch_ways(mesh)
        parameters = _bytes_on_device((state.trainable, state.frozen))
        optimizer, batch = _bytes_on_device(state.optimizer), _bytes_on_device(batch_shapes(job))
        if compiled.memory is None:
            rest = max(0, compiled.needed - parameters - optimizer - batch)
            return Memory(
                parameters,
                optimizer,
                batch,
                rest,
                0,
                max(compiled.needed, self.chip.memory_bytes + 1),
                self.chip.memory_bytes,
            )
        temporary = compiled.memory.temporary
        activations = min(temporary, round(slope * rows))
        return Memory(
            parameters,
            optimizer,
            batch,
            activations,
            temporary - activations,
            compiled.memory.total,
            self.chip.memory_bytes,
        )

    def largest_batch(self, mesh: Mesh, batch_size: int, micro_batch: int, slope: float) -> int:
        """Returns the largest number of examples on a device at once that fits, compiled to be sure; 0 where none does.

        Args:
          mesh: The mesh.
          batch_size: Examples per step over all devices that were compiled already.
          micro_batch: Examples at once over all devices that were compiled already.
          slope: Bytes of scratch that each example on a device adds.
        """
        ways, limit = batch_ways(mesh), self.chip.memory_bytes
        compiled = self._compile(mesh, batch_size, micro_batch)
        rows = micro_batch // ways
        if compiled.memory is None or not slope:
            guess = rows // 2 if compiled.memory is None else rows
        else:
            guess = rows + int((limit - compiled.memory.total) / slope)
            guess = guess // 8 * 8 if guess >= 8 else guess
        while guess >= 1:
            found = self._compile(mesh, guess * ways, guess * ways)
            if found.memory is not None and found.memory.total <= limit:
                return guess
            guess = guess - 8 if guess > 16 and found.memory is not None else guess // 2
        return 0

    def plan(self, config: MeshConfig, cut: BatchPlan, *, find_largest: bool = True) -> MeshPlan:
        """Plans one mesh and batch.

        Args:
          config: Sizes of the axes.
          cut: The batch, and how it is cut.
          find_largest: Whether to look for the largest batch that fits, which compiles twice more.

        Returns:
          The plan.

        Raises:
          MeshError: The mesh does not multiply to the devices, or model or batch can not be split over it.
          HloError: The compiled program can not be read.
        """
        mesh, workload = self.mesh(config), self.workload
        batch_size, micro_batch = cut.target_batch, cut.micro_batch
        check_mesh_fits(mesh, workload.model, micro_batch)
        compiled = self._compile(mesh, batch_size, micro_batch)
        slope = self._scratch_slope(mesh, batch_size, micro_batch) if find_largest else 0.0
        estimate, gathered = None, ()
        if compiled.memory is not None:
            module = parse_module(compiled.text)
            interconnect = make_interconnect(self.topology, list(mesh.devices.flat), self.chip)
            estimate = estimate_step(module, interconnect)
            # A row of a device, in half the width of the interconnect: what a hidden state has at least.
            least = micro_batch // batch_ways(mesh) * workload.length * workload.model.hidden_size // 2
            gathered = tuple(
                activation_gathers(module, interconnect, _multiplied_shapes(workload.job(mesh, batch_size)), least)
            )
        rows = batch_size * workload.rows_per_example
        return MeshPlan(
            mesh=dict(mesh.shape),
            batch_size=batch_size,
            accumulation_steps=cut.accumulation_steps,
            memory=self._memory(mesh, batch_size, micro_batch, slope),
            estimate=estimate,
            largest_batch=self.largest_batch(mesh, batch_size, micro_batch, slope) if find_largest else -1,
            tokens_per_step=rows * workload.length,
            model_flops=rows * workload.flops_per_row,
            peak_flops=self.topology.num_devices * self.chip.peak_flops,
            gathered_activations=gathered,
            num_steps=workload.num_steps,
        )

    def search(self, batches_per_device: Sequence[int], max_compiles: int = 24) -> list[MeshPlan]:
        """Plans the meshes that are worth a look, and ranks those that fit by tokens per second; what does not fit comes last.

        Args:
          batches_per_device: Examples of a step on each group of devices that holds the same rows.
          max_compiles: Most pairs of mesh and batch that are compiled.

        Returns:
          The plans, best first.

        Raises:
          MeshError: No mesh suits the model.
        """
        plans: list[MeshPlan] = []
        refused: MeshError | ShapeError | None = None
        pairs = [(mesh, rows) for mesh in self._candidates() for rows in batches_per_device]
        if not pairs:
            raise MeshError(f"No mesh of {self.topology.num_devices} devices suits the model.")
        for config, rows in pairs[:max_compiles]:
            try:
                plans.append(self.plan(config, self.batch_plan(config, rows), find_largest=False))
            except (MeshError, ShapeError) as error:  # slices, a generator, or rows that the family does not split
                self._say(f"Left out: {error}")
                refused = error
        if not plans and refused is not None:
            raise refused
        if len(pairs) > max_compiles:
            self._say(f"{len(pairs) - max_compiles} more pairs of mesh and batch were left out; raise max_compiles.")
        return sorted(plans, key=lambda plan: (not plan.memory.fits, -plan.tokens_per_second_per_device))

    def _candidates(self) -> Iterable[MeshConfig]:
        """Returns meshes: data alone, fsdp over one axis of the topology or all devices, and tensor or, for long rows, sequence 2 to 8 of each."""
        count, model = self.topology.num_devices, self.workload.model
        axis = self.topology.shape[-1]
        for tensor in (1, 2, 4, 8):
            sizes = [(layer.num_attention_heads, layer.intermediate_size) for layer in model.layer_sizes]
            if count % tensor or any(heads % tensor or inner % tensor for heads, inner in sizes):
                continue
            for fsdp in sorted({1, axis, count // tensor}):
                if fsdp < 1 or (count // tensor) % fsdp or model.hidden_size % fsdp or model.embedding_width % fsdp:
                    continue
                yield MeshConfig(data=count // tensor // fsdp, fsdp=fsdp, tensor=tensor)
        for sequence in (2, 4, 8):
            if count % sequence or self.workload.length < sequence * _LEAST_TOKENS:
                continue
            for fsdp in sorted({1, count // sequence}):
                if model.hidden_size % fsdp == 0 and model.embedding_width % fsdp == 0:
                    yield MeshConfig(data=count // sequence // fsdp, fsdp=fsdp, sequence=sequence)


def _bytes_on_device(tree: Any) -> int:
    return sum(
        math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize for array in jax.tree.leaves(tree)
    )


def _multiplied_shapes(job: StepJob) -> list[tuple[int, ...]]:
    """Returns the shapes of the weights once they are put together over fsdp, and before."""
    state, fsdp = state_shapes(job), job.mesh.shape[FSDP]
    found = []
    for array in jax.tree.leaves((state.trainable, state.frozen)):
        split = array.sharding.shard_shape(array.shape)
        spec = [*array.sharding.spec, *[None] * len(split)]
        found.append(tuple(size * (fsdp if spec[axis] == FSDP else 1) for axis, size in enumerate(split)))
        found.append(tuple(array.shape))
    return found
