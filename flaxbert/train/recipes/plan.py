"""How a global batch is cut into micro batches that fit, and the compiled step."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from flaxbert.config import TrainConfig
from flaxbert.core.precision import Precision
from flaxbert.core.sharding import BATCH_SPEC, bytes_per_device
from flaxbert.core.trees import leaf_kinds
from flaxbert.core.units import format_bytes
from flaxbert.data.batches import collate
from flaxbert.families.graph import forward, graph_definition
from flaxbert.train.losses import loss_for
from flaxbert.train.memory import (
    BatchPlan,
    StepMemory,
    check_memory,
    estimate_step_memory,
    find_batch_size,
    memory_budget_bytes,
)
from flaxbert.train.optimizer import make_optimizer
from flaxbert.train.recipes.setup import Prepared, Say, batch_ways, global_batch_size
from flaxbert.train.state import TrainState, create_state, state_shardings
from flaxbert.train.step import make_train_step


@dataclasses.dataclass(frozen=True)
class CompiledRun:
    """A training step and the state that it works on.

    Attributes:
      step: ``(state, batch, dropout_key) -> (state, metrics)``.
      kinds: Kinds of typed leaves.
      like: Structure of the state with shapes and shardings.
      initial_state: Builds the state before the first step.
    """

    step: Any
    kinds: Mapping[str, str]
    like: TrainState
    initial_state: Callable[[], TrainState]


def _class_weights(prepared: Prepared) -> tuple[float, ...]:
    """Returns the weight per label; ``balanced`` gives each label the same share of the loss."""
    chosen = prepared.config.train.class_weights
    if chosen != "balanced":
        return tuple(chosen)
    counts = np.asarray(list(prepared.data.report["train"].label_counts.values()), np.float64)
    if not counts.size:
        return ()
    return tuple((counts.sum() / (counts.size * np.maximum(counts, 1.0))).tolist())


def _forward(prepared: Prepared) -> Callable[..., Any]:
    model = prepared.model
    graphdef = graph_definition(model.config, model.task, model.execution)

    def run(params: Any, batch: Mapping[str, Any], *, dropout_key: Any = None) -> Any:
        return forward(graphdef, params, batch, dropout_key=dropout_key)

    return run


def batch_shapes(prepared: Prepared, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of the largest batch of a run, placed on its mesh.

    Args:
      prepared: The run.
      batch_size: Examples per step over all devices.
    """
    sharding = NamedSharding(prepared.mesh, BATCH_SPEC)
    example = collate(prepared.data.train, np.zeros(1, np.int64), prepared.data.length_buckets[-1])
    return {
        name: jax.ShapeDtypeStruct((batch_size, *array.shape[1:]), array.dtype, sharding=sharding)
        for name, array in example.items()
    }


def _build_step(prepared: Prepared, plan: BatchPlan, state: TrainState, kinds: Mapping[str, str]) -> Any:
    train, model = prepared.config.train, prepared.model
    scaled = Precision(model.execution.precision).needs_loss_scale
    return make_train_step(
        _forward(prepared),
        loss_for(
            model.task,
            model.config.problem_type,
            label_smoothing_rate=train.label_smoothing_rate,
            class_weights=_class_weights(prepared),
        ),
        make_optimizer(train, prepared.total_steps),
        kinds,
        plan.accumulation_steps,
        shardings=state_shardings(state, prepared.leaf_axes, prepared.mesh, kinds),
        mesh=prepared.mesh,
        loss_scale_growth_steps=train.loss_scale_growth_steps if scaled else 0,
    )


def _create_state(prepared: Prepared) -> tuple[TrainState, dict[str, str]]:
    train: TrainConfig = prepared.config.train
    scaled = Precision(prepared.model.execution.precision).needs_loss_scale
    return create_state(
        prepared.model.params,
        train.freeze,
        make_optimizer(train, prepared.total_steps),
        leaf_axes=prepared.leaf_axes,
        mesh=prepared.mesh,
        loss_scale=train.initial_loss_scale if scaled else 1.0,
    )


def _create_state_of_shapes(prepared: Prepared) -> TrainState:
    train: TrainConfig = prepared.config.train
    optimizer = make_optimizer(train, prepared.total_steps)
    return create_state(prepared.model.params, train.freeze, optimizer, copy=False)[0]


def describe_state(state: TrainState) -> str:
    """Returns a line with the bytes of parameters and optimizer state on each device of this process.

    Args:
      state: A state on its devices.
    """
    parts = {"parameters": (state.trainable, state.frozen), "optimizer state": state.optimizer}
    words = []
    for name, tree in parts.items():
        sizes = bytes_per_device(tree).values()
        least, most = format_bytes(min(sizes, default=0)), format_bytes(max(sizes, default=0))
        words.append(f"{name} {least if least == most else f'{least} to {most}'}")
    return f"On each device: {', '.join(words)}."


def compile_run(prepared: Prepared, plan: BatchPlan, say: Say) -> CompiledRun:
    """Builds the training step of a plan and the structure of its state.

    Args:
      prepared: The run.
      plan: How batches are cut.
      say: Where lines for the user go.

    Returns:
      The step with the structure of its state.

    Raises:
      RuleError: A freeze rule is not usable.
    """
    state, kinds = _create_state(prepared)
    say(describe_state(state))
    like = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding), state)
    holder = [state]
    del state

    def initial_state() -> TrainState:
        return holder.pop() if holder else _create_state(prepared)[0]

    return CompiledRun(_build_step(prepared, plan, like, kinds), kinds, like, initial_state)


def _compile_for(prepared: Prepared) -> Callable[[int, int], StepMemory]:
    state = jax.eval_shape(lambda: _create_state_of_shapes(prepared))
    kinds = leaf_kinds(prepared.model.params)
    shardings = state_shardings(state, prepared.leaf_axes, prepared.mesh, kinds)
    like = jax.tree.map(
        lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding), state, shardings
    )
    size, ways = global_batch_size(prepared.config), batch_ways(prepared.mesh)
    batch, key = batch_shapes(prepared, size), jax.random.key(0)

    @functools.cache
    def compile_for(micro_batch: int, accumulation_steps: int) -> StepMemory:
        step = _build_step(prepared, BatchPlan(size, micro_batch, ways), like, kinds)
        with jax.set_mesh(prepared.mesh):
            return estimate_step_memory(step.lower(like, batch, key).compile())

    return compile_for


def plan_batches(prepared: Prepared, say: Say) -> BatchPlan:
    """Decides how the global batch is cut, from the memory that the compiled step needs for the longest inputs.

    Args:
      prepared: The run.
      say: Where lines for the user go.

    Returns:
      The plan.

    Raises:
      MemoryLimitError: The step needs more memory than there is; names the batch and a smaller one that fits.
    """
    train, ways = prepared.config.train, batch_ways(prepared.mesh)
    size, compile_for = global_batch_size(prepared.config), _compile_for(prepared)
    limit_bytes = memory_budget_bytes(prepared.mesh.local_devices[0])
    if train.batch_size == "auto":
        plan = find_batch_size(size, compile_for, limit_bytes, batch_ways=ways)
        say(f"Batch size auto: {plan.describe()}, of {format_bytes(limit_bytes)} that are free.")
        return plan
    micro_batch = size // train.accumulation_steps
    plan = BatchPlan(size, micro_batch, ways, compile_for(micro_batch, train.accumulation_steps))
    check_memory(plan, limit_bytes, compile_for)
    return plan
