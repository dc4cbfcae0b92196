"""How much memory a compiled step needs, whether there is as much, and the largest micro batch that fits.

The figures come from XLA's buffer assignment of the compiled step, so nothing has to be run to know them. Linux ends a
process that exceeds its container's memory without any message; on CPU the check is the only warning there is.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import psutil

from flaxbert.core.runtime import device_memory_limit_bytes, host_memory_limit_bytes
from flaxbert.core.units import format_bytes
from flaxbert.errors import ConfigError, MemoryLimitError

_OUT_OF_MEMORY_WORDS = ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory")


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Memory of one compiled step on each device.

    Attributes:
      argument: Bytes of its inputs: state and batch.
      output: Bytes of its outputs that do not overwrite an input.
      temporary: Bytes of scratch: activations and gradients.
      total: Bytes in use while it runs.
    """

    argument: int
    output: int
    temporary: int
    total: int

    @property
    def additional(self) -> int:
        """Bytes that running it takes beyond inputs that are in memory already."""
        return self.total - self.argument


def estimate_step_memory(compiled: Any) -> StepMemory:
    """Reads from a compiled step how much memory it needs on each device.

    Args:
      compiled: What ``jax.jit(...).lower(...).compile()`` returns.

    Returns:
      Bytes per device; donated inputs and the outputs that overwrite them are counted once.

    Raises:
      MemoryLimitError: The backend does not report memory.
    """
    analysis = compiled.memory_analysis()
    if analysis is None:
        raise MemoryLimitError(
            "This backend does not report the memory of compiled steps; give train.batch_size as a number instead of auto."
        )
    argument = int(analysis.argument_size_in_bytes)
    output = max(0, int(analysis.output_size_in_bytes) - int(analysis.alias_size_in_bytes))
    temporary = int(analysis.temp_size_in_bytes)
    return StepMemory(argument=argument, output=output, temporary=temporary, total=argument + output + temporary)


def memory_budget_bytes(device: Any, resident_bytes: int = 0) -> int:
    """Returns how many bytes a step may occupy on a device, its inputs included.

    That is the device's memory, less what is in use for other things. For CPU devices it is an equal share of what the
    container or machine allows this process, less what the process occupies besides the state.

    Args:
      device: A JAX device of this process.
      resident_bytes: Bytes per device of the step's inputs that are on the device already, such as the training state.
    """
    if device.platform == "cpu":
        count = max(1, jax.local_device_count())
        return (host_memory_limit_bytes() - psutil.Process().memory_info().rss) // count + resident_bytes
    in_use = int((device.memory_stats() or {}).get("bytes_in_use", resident_bytes))
    return device_memory_limit_bytes(device) - in_use + resident_bytes


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """How a global batch is cut into micro batches.

    Attributes:
      target_batch: Examples per optimizer step over all devices.
      micro_batch: Examples per micro batch over all devices.
      batch_ways: Devices over which a micro batch is split; it is a multiple of this.
      memory: Memory of the compiled step, where it was compiled.
    """

    target_batch: int
    micro_batch: int
    batch_ways: int = 1
    memory: StepMemory | None = None

    @property
    def accumulation_steps(self) -> int:
        """Micro batches per optimizer step."""
        return self.target_batch // self.micro_batch

    def describe(self) -> str:
        """Returns one sentence about the plan, for logs."""
        size = "" if self.memory is None else f", about {format_bytes(self.memory.total)} per device"
        return (
            f"{self.target_batch} examples per step as {self.accumulation_steps} micro batch"
            f"{'' if self.accumulation_steps == 1 else 'es'} of {self.micro_batch}{size}"
        )


CompileFor = Callable[[int, int], StepMemory]
"""``compile_for(micro_batch, accumulation_steps)`` compiles the step for these sizes and returns its memory."""


def micro_batch_sizes(target_batch: int, batch_ways: int = 1) -> list[int]:
    """Returns the micro batches that divide a batch and can be split over the devices, smallest first.

    Args:
      target_batch: Examples per optimizer step.
      batch_ways: Devices over which the batch is split.

    Raises:
      ConfigError: The batch itself can not be split over the devices.
    """
    if target_batch < 1 or target_batch % batch_ways:
        raise ConfigError(
            f"A batch of {target_batch} can not be split over data x fsdp = {batch_ways} devices; "
            f"use a multiple of {batch_ways}."
        )
    per_device = target_batch // batch_ways
    return [size * batch_ways for size in range(1, per_device + 1) if per_device % size == 0]


def _too_small(plan: BatchPlan, limit_bytes: int) -> MemoryLimitError:
    needed = "more" if plan.memory is None else f"{format_bytes(plan.memory.total)}"
    return MemoryLimitError(
        f"Even a micro batch of {plan.micro_batch} needs {needed} per device, but only {format_bytes(limit_bytes)} "
        "are free; use shorter inputs (data.max_length), model.remat full, a smaller model, or more devices (mesh.fsdp)."
    )


def find_batch_size(target_batch: int, compile_for: CompileFor, limit_bytes: int, *, batch_ways: int = 1) -> BatchPlan:
    """Finds the largest micro batch whose step fits; the global batch stays the same through accumulation.

    The whole batch is tried first, then the smallest micro batch, then what a straight line between known sizes allows,
    so that few sizes are compiled.

    Args:
      target_batch: Examples per optimizer step over all devices.
      compile_for: Compiles the step for a size.
      limit_bytes: Bytes per device that the step may occupy, from ``memory_budget_bytes``.
      batch_ways: Devices over which a micro batch is split.

    Returns:
      The plan.

    Raises:
      MemoryLimitError: Not even the smallest micro batch fits.
      ConfigError: The batch can not be split over the devices.
    """
    sizes = micro_batch_sizes(target_batch, batch_ways)
    plans: dict[int, BatchPlan] = {}

    def total(index: int) -> int:
        if index not in plans:
            size = sizes[index]
            plans[index] = BatchPlan(target_batch, size, batch_ways, compile_for(size, target_batch // size))
        memory = plans[index].memory
        return 0 if memory is None else memory.total

    fits, too_large = 0, len(sizes) - 1
    if total(too_large) <= limit_bytes:
        return plans[too_large]
    if total(fits) > limit_bytes:
        raise _too_small(plans[fits], limit_bytes)
    while too_large - fits > 1:
        slope = (total(too_large) - total(fits)) / (sizes[too_large] - sizes[fits])
        allowed = sizes[fits] + (limit_bytes - total(fits)) / slope if slope > 0 else sizes[too_large]
        line = max(index for index in range(fits, too_large) if sizes[index] <= allowed)
        # Every second guess halves what is left, in case memory does not grow along the line.
        guess = max(fits + 1, line) if len(plans) % 2 == 0 else (fits + too_large) // 2
        if total(guess) <= limit_bytes:
            fits = guess
        else:
            too_large = guess
    return plans[fits]


def cut_alike(plans: Sequence[BatchPlan]) -> list[BatchPlan]:
    """Returns the plans of one run's batches, all cut into as many micro batches as the one that needs most.

    Args:
      plans: One for each size of batch.

    Raises:
      ConfigError: No number of micro batches divides all batches.
    """
    needed = max(plan.accumulation_steps for plan in plans)
    shares = [plan.target_batch // plan.batch_ways for plan in plans]
    common = math.gcd(*shares)
    steps = next((number for number in range(needed, common + 1) if common % number == 0), 0)
    if not steps:
        sizes = " and ".join(str(plan.target_batch) for plan in plans)
        raise ConfigError(
            f"Batches of {sizes} over {plans[0].batch_ways} devices can not be cut into the same number of micro batches, at least "
            f"{needed}; choose sizes with a larger common divisor."
        )
    return [
        plan
        if plan.accumulation_steps == steps
        else BatchPlan(plan.target_batch, plan.target_batch // steps, plan.batch_ways)
        for plan in plans
    ]


def halve(plan: BatchPlan, other_batches: Sequence[int] = ()) -> BatchPlan:
    """Returns the plan to go on with after memory ran out: at most half the micro batch, the same global batch.

    Args:
      plan: The plan that ran out of memory.
      other_batches: Rows of other batches of the run, which are cut into as many micro batches.

    Raises:
      MemoryLimitError: The micro batch can not be made smaller.
    """
    sizes = [size for size in micro_batch_sizes(plan.target_batch, plan.batch_ways) if 2 * size <= plan.micro_batch]
    smaller = [
        size
        for size in sizes
        if all(other // plan.batch_ways % (plan.target_batch // size) == 0 for other in other_batches)
    ]
    if sizes and not smaller:
        batches = " and ".join(str(size) for size in (plan.target_batch, *other_batches))
        raise MemoryLimitError(
            f"Memory ran out with a micro batch of {plan.micro_batch}, and batches of {batches} over {plan.batch_ways} devices can not be cut into "
            "the same larger number of micro batches; choose sizes with a larger common divisor."
        )
    if not smaller:
        raise MemoryLimitError(
            f"Memory ran out with a micro batch of {plan.micro_batch}, which can not be made smaller for a batch of "
            f"{plan.target_batch} over {plan.batch_ways} devices; use shorter inputs (data.max_length), model.remat full, "
            "a smaller model, or more devices (mesh.fsdp)."
        )
    return dataclasses.replace(plan, micro_batch=smaller[-1], memory=None)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an exception of a step says that memory ran out.

    Args:
      error: What running or compiling the step raised.
    """
    return isinstance(error, MemoryError) or any(word in str(error) for word in _OUT_OF_MEMORY_WORDS)


def check_memory(
    plan: BatchPlan, limit_bytes: int, compile_for: CompileFor | None = None, *, option: str = "train.batch_size"
) -> None:
    """Checks that a compiled step fits before it runs.

    Args:
      plan: Sizes and memory of the compiled step.
      limit_bytes: Bytes per device that it may occupy, from ``memory_budget_bytes``.
      compile_for: Compiles the step for smaller sizes, to name one that fits; None names none.
      option: The option that sets the batch, for the message.

    Raises:
      MemoryLimitError: It does not fit; names the batch and a smaller micro batch that does.
    """
    if plan.memory is None or plan.memory.total <= limit_bytes:
        return
    if compile_for is None:
        advice = "use a smaller batch or more train.accumulation_steps"
    else:
        found = find_batch_size(plan.target_batch, compile_for, limit_bytes, batch_ways=plan.batch_ways)
        advice = (
            f"a micro batch of {found.micro_batch} fits: set train.accumulation_steps {found.accumulation_steps} (the same "
            f"training, slower), {option} {found.micro_batch}"
        )
    raise MemoryLimitError(
        f"A step with {plan.micro_batch} examples at once ({option} {plan.target_batch}, accumulation_steps "
        f"{plan.accumulation_steps}) needs {format_bytes(plan.memory.total)} per device, but only "
        f"{format_bytes(limit_bytes)} are free; {advice}, or let {option} auto find the size."
    )
