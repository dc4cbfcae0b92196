"""How a global batch is cut into micro batches that fit, and the compiled step."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from flaxbert.config import TrainConfig
from flaxbert.core.arrays import Params
from flaxbert.core.precision import Precision
from flaxbert.core.sharding import batch_shardings, batch_ways, bytes_per_device
from flaxbert.core.trees import leaf_kinds
from flaxbert.core.units import format_bytes
from flaxbert.data.batches import collate
from flaxbert.train.fixed_leaves import FixedLeaves
from flaxbert.train.guard import StepGuard
from flaxbert.train.losses import Forward, LossFunction, loss_for
from flaxbert.train.memory import (
    BatchPlan,
    StepMemory,
    check_memory,
    cut_alike,
    estimate_step_memory,
    find_batch_size,
    memory_budget_bytes,
)
from flaxbert.train.optimizer import Optimizer
from flaxbert.train.optimizers import make_optimizer
from flaxbert.train.recipes.forwards import model_forward
from flaxbert.train.recipes.setup import Prepared, Say, global_batch_size
from flaxbert.train.state import TrainState, create_state, state_shardings
from flaxbert.train.step import MaskUpdate, make_norms, make_train_step


@dataclasses.dataclass(frozen=True)
class CompiledRun:
    """A training step and the state that it works on.

    Attributes:
      step: ``(state, batch, dropout_key) -> (state, metrics)``.
      norms: ``(state, learning rate) -> norms by name``.
      kinds: Kinds of typed leaves.
      like: Structure of the state with shapes and shardings.
      initial_state: Builds the state before the first step.
    """

    step: Any
    norms: Any
    kinds: Mapping[str, str]
    like: TrainState
    initial_state: Callable[[], TrainState]


@dataclasses.dataclass(frozen=True, eq=False)
class StepJob:
    """What the compiled step of a run is made from.

    Attributes:
      params: Parameters before training, on the host.
      forward: ``forward(params, batch, dropout_key=...)``; what it returns goes to the loss.
      precision: Type that matrix products are computed in.
      train: Training options.
      mesh: The mesh.
      leaf_axes: Axis names of every leaf.
      total_steps: Optimizer steps of the whole run.
      loss: Weighted sum of losses and of weights of a batch.
      example: A batch of one example, of the largest shape of the run.
      fixed: What ``forward`` finds in its parameters beside those that are trained.
      masks: Changes masks in the course of training; None where none change.
      steps: The step by its number of micro batches, made when it is first asked for, so that what was traced and compiled to learn its memory is
        what trains. Jobs that differ in the shape of the batch alone may share it.
    """

    params: Params
    forward: Forward
    precision: str
    train: TrainConfig
    mesh: Mesh
    leaf_axes: Mapping[str, tuple[str, ...]]
    total_steps: int
    loss: LossFunction
    example: Mapping[str, np.ndarray]
    fixed: FixedLeaves | None = None
    masks: MaskUpdate | None = None
    steps: dict[int, Any] = dataclasses.field(default_factory=dict, repr=False)

    def changed(self, **changes: Any) -> "StepJob":
        """Returns a job with other attributes, and with steps of its own.

        Args:
          **changes: New values by name.
        """
        return dataclasses.replace(self, **changes, steps={})

    @property
    def batch_size(self) -> int:
        """Examples per optimizer step over all devices."""
        return global_batch_size(self.train)

    @property
    def optimizer(self) -> Optimizer:
        """The update rule."""
        return make_optimizer(self.train, self.total_steps, self.leaf_axes)


def finetuning_job(prepared: Prepared) -> StepJob:
    """Returns what the step of a fine-tuning run is made from.

    Args:
      prepared: The run.
    """
    train, model = prepared.config.train, prepared.model
    return StepJob(
        params=model.params,
        forward=model_forward(model),
        precision=model.execution.precision,
        train=train,
        mesh=prepared.mesh,
        leaf_axes=prepared.leaf_axes,
        total_steps=prepared.total_steps,
        loss=loss_for(
            model.task,
            model.config.problem_type,
            label_smoothing_rate=train.label_smoothing_rate,
            class_weights=class_weights(prepared),
        ),
        example=collate(prepared.data.train, np.zeros(1, np.int64), prepared.data.length_buckets[-1]),
    )


def class_weights(prepared: Prepared) -> tuple[float, ...]:
    """Returns the weight per label; ``balanced`` gives each label the same share of the loss.

    Args:
      prepared: The run.
    """
    chosen = prepared.config.train.class_weights
    if chosen != "balanced":
        return tuple(chosen)
    counts = np.asarray(list(prepared.data.report["train"].label_counts.values()), np.float64)
    if not counts.size:
        return ()
    return tuple((counts.sum() / (counts.size * np.maximum(counts, 1.0))).tolist())


def batch_shapes(job: StepJob) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of the largest batch of a run, placed on its mesh.

    Args:
      job: What the step is made from.
    """
    shardings = batch_shardings(job.example, job.mesh)
    return {
        name: jax.ShapeDtypeStruct((job.batch_size, *array.shape[1:]), array.dtype, sharding=shardings[name])
        for name, array in job.example.items()
    }


def _step_of(job: StepJob, plan: BatchPlan, state: TrainState) -> Any:
    number = plan.accumulation_steps
    if number not in job.steps:
        scaled, kinds = Precision(job.precision).needs_loss_scale, leaf_kinds(job.params)
        job.steps[number] = make_train_step(
            job.forward,
            job.loss,
            job.optimizer,
            kinds,
            number,
            shardings=state_shardings(state, job.leaf_axes, job.mesh, kinds),
            mesh=job.mesh,
            loss_scale_growth_steps=job.train.loss_scale_growth_steps if scaled else 0,
            guard=StepGuard.of(job.train),
            fixed=job.fixed,
            masks=job.masks,
        )
    return job.steps[number]


def _create_state(job: StepJob) -> tuple[TrainState, dict[str, str]]:
    scaled = Precision(job.precision).needs_loss_scale
    return create_state(
        job.params,
        job.train.freeze,
        job.optimizer,
        leaf_axes=job.leaf_axes,
        mesh=job.mesh,
        loss_scale=job.train.initial_loss_scale if scaled else 1.0,
    )


def _create_state_of_shapes(job: StepJob) -> TrainState:
    return jax.eval_shape(
        lambda params: create_state(params, job.train.freeze, job.optimizer, copy=False)[0], job.params
    )


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


def compile_run(job: StepJob, plan: BatchPlan, say: Say) -> CompiledRun:
    """Builds the training step of a plan and the structure of its state.

    Args:
      job: What the step is made from.
      plan: How batches are cut.
      say: Where lines for the user go.

    Returns:
      The step with the structure of its state.

    Raises:
      RuleError: A freeze rule is not usable.
    """
    for number in job.steps.keys() - {plan.accumulation_steps}:  # programs of sizes that were only tried
        del job.steps[number]
    state, kinds = _create_state(job)
    say(describe_state(state))
    like = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding), state)
    holder = [state]
    del state

    def initial_state() -> TrainState:
        return holder.pop() if holder else _create_state(job)[0]

    return CompiledRun(
        _step_of(job, plan, like), make_norms(job.optimizer, sharded=job.mesh.size > 1), kinds, like, initial_state
    )


def state_shapes(job: StepJob) -> TrainState:
    """Returns the shapes of the state of a run and where they lie on its mesh, without making any array.

    Args:
      job: What the step is made from; its parameters may be shapes.

    Raises:
      RuleError: A freeze rule is not usable.
      MeshError: A leaf can not be split over the mesh.
    """
    state = _create_state_of_shapes(job)
    shardings = state_shardings(state, job.leaf_axes, job.mesh, leaf_kinds(job.params))
    return jax.tree.map(
        lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding), state, shardings
    )


def lower_step(job: StepJob, micro_batch: int) -> Any:
    """Returns the training step of a run for its largest batch, ready to be compiled for the devices of its mesh, which need not be there.

    Args:
      job: What the step is made from; its parameters may be shapes.
      micro_batch: Examples per micro batch over all devices.

    Returns:
      The step, lowered.
    """
    like = state_shapes(job)
    step = _step_of(job, BatchPlan(job.batch_size, micro_batch, batch_ways(job.mesh)), like)
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(job.mesh):
        return step.lower(like, batch_shapes(job), key)


def _compile_for(job: StepJob) -> Callable[[int, int], StepMemory]:
    @functools.cache
    def compile_for(micro_batch: int, accumulation_steps: int) -> StepMemory:
        del accumulation_steps  # follows from the micro batch
        lowered = lower_step(job, micro_batch)
        with jax.set_mesh(job.mesh):
            return estimate_step_memory(lowered.compile())

    return compile_for


def plan_batches(jobs: Sequence[StepJob], say: Say) -> BatchPlan:
    """Decides how the global batch is cut, from the memory that the compiled step needs for the longest inputs.

    Args:
      jobs: What the step is made from, for every shape of batch that the run has; all are cut into as many micro batches.
      say: Where lines for the user go.

    Returns:
      The plan of the first shape.

    Raises:
      MemoryLimitError: A step needs more memory than there is; names the batch and a smaller one that fits.
    """
    train, ways = jobs[0].train, batch_ways(jobs[0].mesh)
    limit_bytes = memory_budget_bytes(jobs[0].mesh.local_devices[0])
    if train.finds_micro_batch:
        found = [find_batch_size(job.batch_size, _compile_for(job), limit_bytes, batch_ways=ways) for job in jobs]
        plan = cut_alike(found)[0]
        say(f"Batch size auto: {plan.describe()}, of {format_bytes(limit_bytes)} that are free.")
        return plan
    plans = []
    for job in jobs:
        compile_for, micro_batch = _compile_for(job), job.batch_size // train.fixed_accumulation_steps
        memory = compile_for(micro_batch, train.fixed_accumulation_steps)
        plans.append(BatchPlan(job.batch_size, micro_batch, ways, memory))
        check_memory(plans[-1], limit_bytes, compile_for)
    return plans[0]
