"""One training step as a pure function: gradients over micro batches, clipping, update, and what to do when they overflow."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float

from flaxbert.core.sharding import BATCH_SPEC, DATA, FSDP, ROWS, batch_shardings, batch_ways, replicated
from flaxbert.core.trees import unflatten_parts
from flaxbert.errors import ShapeError
from flaxbert.train.fixed_leaves import FixedLeaves, StepWithFixed
from flaxbert.train.guard import APPLIED, OVERFLOW, StepGuard
from flaxbert.train.losses import Forward, LossFunction
from flaxbert.train.optimizer import Leaves, Optimizer, global_norm
from flaxbert.train.state import NO_BAD_STEP, TrainState

Batch = Mapping[str, Any]
"""Arrays by name, all with the batch as first axis."""

MaskUpdate = Callable[[Any, Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]
"""``update(steps taken, trainable, frozen)``, returns the frozen arrays with the masks that hold from here on."""

LOSS_SCALE_STEP = 2.0
"""Factor by which the loss scale grows and shrinks."""

SMALLEST_LOSS_SCALE = 1.0
"""Loss scale below which overflow is an error of the run, not of the scale."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """What one step reports, all scalars on the device; reading them waits for the step.

    Attributes:
      loss_sum: Weighted sum of the losses of all examples; the loss is ``loss_sum / weight``.
      weight: Sum of the weights.
      grad_norm: Global norm of the gradient of the loss, before clipping.
      learning_rate: Learning rate of this step.
      tokens: Real tokens in the batch, int32.
      loss_scale: Loss scale that this step used.
      outcome: How the step ended, of ``train.guard``, int32; ``APPLIED`` where the update was made.
    """

    loss_sum: Any
    weight: Any
    grad_norm: Any
    learning_rate: Any
    tokens: Any
    loss_scale: Any
    outcome: Any

    @property
    def applied(self) -> Any:
        """Whether the update was made."""
        return self.outcome == APPLIED


TrainStep = Callable[[TrainState, Batch, Any], tuple[TrainState, StepMetrics]]


def count_tokens(batch: Batch) -> jax.Array:
    """Returns the number of real tokens of a batch, int32.

    Args:
      batch: With ``segment_ids``, ``attention_mask`` or neither, which means that all tokens are real.
    """
    for name in ("segment_ids", "attention_mask"):
        if batch.get(name) is not None:
            return jnp.sum((batch[name] > 0).astype(jnp.int32))
    return jnp.full((), batch["input_ids"].size, jnp.int32)


def split_micro_batches(batch: Batch, accumulation_steps: int) -> dict[str, jax.Array]:
    """Deals the rows of a batch out to micro batches, row ``r`` to micro batch ``r % accumulation_steps``.

    Dealt out like that, every device keeps its own rows, and the micro batches do not depend on the mesh.

    Args:
      batch: Arrays ``[batch, ...]``.
      accumulation_steps: Number of micro batches.

    Returns:
      Arrays ``[accumulation_steps, batch / accumulation_steps, ...]``.

    Raises:
      ShapeError: The batch is not divisible by the number of micro batches.
    """
    split: dict[str, jax.Array] = {}
    for name, array in batch.items():
        rows = array.shape[0]
        if rows % accumulation_steps:
            raise ShapeError(
                f"Batch entry '{name}' has {rows} rows, which is not divisible by {accumulation_steps} micro batches."
            )
        dealt = jnp.reshape(array, (rows // accumulation_steps, accumulation_steps, *array.shape[1:]))
        split[name] = jnp.swapaxes(dealt, 0, 1)
    return split


def _entry_names(entry: Any) -> tuple[str, ...]:
    return entry if isinstance(entry, tuple) else () if entry is None else (entry,)


def _own_spec(spec: PartitionSpec, names: Collection[str]) -> PartitionSpec:
    """Returns of a spec what it says about some axes of the mesh."""
    return PartitionSpec(*(tuple(name for name in _entry_names(entry) if name in names) or None for entry in spec))


def _place(array: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Says how the compiler is to split an array over the axes that are left to it."""
    traced = jax.sharding.get_abstract_mesh()
    mesh = sharding.mesh if traced.empty else traced
    spec = _own_spec(sharding.spec, set(mesh.axis_names) - set(mesh.manual_axes))
    return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, spec))


def _gather_over_fsdp(leaves: Leaves, shardings: Mapping[str, NamedSharding]) -> Leaves:
    """Puts parameters together that are split over fsdp, for the time of their use; their gradients are summed and split again."""
    return {name: _gather_leaf(leaf, shardings[name].spec) for name, leaf in leaves.items()}


def _gather_leaf(leaf: Any, spec: PartitionSpec) -> Any:
    if FSDP not in spec:
        return leaf
    gather = functools.partial(jax.lax.all_gather, axis_name=FSDP, axis=spec.index(FSDP), tiled=True)
    own = _own_spec(spec, set(jax.sharding.get_abstract_mesh().axis_names) - set(ROWS))
    others = {name for entry in own for name in _entry_names(entry)}
    if not others:
        return gather(leaf)
    # Split over tensor too: left to the compiler, that axis would be gathered for the sum of the gradients, and with it all activations.
    return jax.shard_map(gather, in_specs=own, out_specs=own, axis_names=others, check_vma=False)(leaf)


@dataclasses.dataclass(frozen=True, eq=False)
class _Gradients:
    """Computes the gradient of the summed loss, micro batch by micro batch.

    Over the rows of a batch the work is split by hand (``jax.shard_map`` over data and fsdp; other axes are the compiler's): every
    device adds up the gradients of its own rows, and after the last micro batch they are summed over data once. Left to the compiler,
    every micro batch would wait for a sum of all gradients, one that is split over fsdp would be summed whole first, and a tied table
    would be summed once for every use.
    """

    forward: Forward
    loss: LossFunction
    kinds: Mapping[str, str]
    accumulation_steps: int
    shardings: TrainState | None
    mesh: Mesh | None

    @property
    def _split(self) -> bool:
        return self.mesh is not None and batch_ways(self.mesh) > 1

    def _scaled_loss(
        self, trainable: Leaves, frozen: Leaves, batch: Batch, key: Any, factor: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        if self.shardings is not None and self._split:
            trainable = _gather_over_fsdp(trainable, self.shardings.trainable)
            frozen = _gather_over_fsdp(frozen, self.shardings.frozen)
        params = unflatten_parts({**trainable, **frozen}, self.kinds)
        total, weight = self.loss(self.forward(params, batch, dropout_key=key), batch)
        return total * factor, (total, weight)

    def _constrain(self, gradients: Leaves) -> Leaves:
        if self.shardings is None or self.mesh is None or self.mesh.size == 1:
            return gradients
        return {name: _place(gradient, self.shardings.trainable[name]) for name, gradient in gradients.items()}

    def _micro(self, trainable: Leaves, frozen: Leaves, batch: Batch, key: Any, index: Any, factor: jax.Array) -> Any:
        if self.mesh is not None and self._split:
            shardings = batch_shardings(batch, self.mesh)
            batch = {name: _place(array, shardings[name]) for name, array in batch.items()}
        micro_key = None if key is None else jax.random.fold_in(key, index)
        gradient = jax.grad(self._scaled_loss, has_aux=True)
        gradients, (total, weight) = gradient(trainable, frozen, batch, micro_key, factor)
        return self._constrain(gradients), total, weight

    def _accumulate(self, trainable: Leaves, frozen: Leaves, batch: Batch, key: Any, factor: jax.Array) -> Any:
        if self.accumulation_steps == 1:
            return self._micro(trainable, frozen, batch, key, jnp.zeros((), jnp.int32), factor)

        def body(carry: Any, inputs: Any) -> tuple[Any, None]:
            added = self._micro(trainable, frozen, inputs[1], key, inputs[0], factor)
            return jax.tree.map(jnp.add, carry, added), None

        zeros = self._constrain({name: jnp.zeros_like(leaf) for name, leaf in trainable.items()})
        start = (zeros, jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))
        indices = jnp.arange(self.accumulation_steps, dtype=jnp.int32)
        carry, _ = jax.lax.scan(body, start, (indices, split_micro_batches(batch, self.accumulation_steps)))
        return carry

    def __call__(self, state: TrainState, batch: Batch, key: Any, factor: jax.Array) -> Any:
        """Returns gradients of ``factor * loss_sum``, the loss sum and the weight."""
        inputs = (state.trainable, state.frozen, dict(batch), key, factor)
        if self.shardings is None or not self._split:
            return self._accumulate(*inputs)
        trainable, frozen = (
            {name: _own_spec(sharding.spec, ROWS) for name, sharding in group.items()}
            for group in (self.shardings.trainable, self.shardings.frozen)
        )

        def accumulate(*parts: Any) -> Any:
            gradients, total, weight = self._accumulate(*parts)
            for name, gradient in gradients.items():
                # What is split over fsdp was summed over it when it was split.
                gradients[name] = jax.lax.psum(gradient, DATA if any(trainable[name]) else ROWS)
            return gradients, jax.lax.psum(total, ROWS), jax.lax.psum(weight, ROWS)

        whole = PartitionSpec()
        return jax.shard_map(
            accumulate,
            mesh=self.mesh,
            in_specs=(trainable, frozen, BATCH_SPEC, whole, whole),
            out_specs=(trainable, whole, whole),
            axis_names=set(ROWS),
            check_vma=False,
        )(*inputs)


def _next_loss_scale(
    state: TrainState, finite: Bool[Array, ""], growth_steps: int
) -> tuple[Float[Array, ""], jax.Array]:
    counted = jnp.where(finite, state.finite_steps + jnp.int32(1), jnp.int32(0))
    grows = counted >= growth_steps
    larger = jnp.where(grows, state.loss_scale * jnp.float32(LOSS_SCALE_STEP), state.loss_scale)
    smaller = jnp.maximum(state.loss_scale / jnp.float32(LOSS_SCALE_STEP), jnp.float32(SMALLEST_LOSS_SCALE))
    return jnp.where(finite, larger, smaller), jnp.where(grows, jnp.int32(0), counted)


@dataclasses.dataclass(frozen=True, eq=False)
class _Step:
    """One optimizer step as a function of state, batch and key."""

    __name__: ClassVar[str] = "train_step"  # what profiles and logs of JAX call it
    gradients_of: _Gradients
    optimizer: Optimizer
    accumulation_steps: int
    sharded: bool
    loss_scale_growth_steps: int
    guard: StepGuard
    masks: MaskUpdate | None

    def _outcome(self, state: TrainState, loss: jax.Array, grad_norm: jax.Array, finite: jax.Array) -> jax.Array:
        outcome = self.guard.judge(state.guard, loss, grad_norm, finite)
        if not self.loss_scale_growth_steps:
            return outcome
        # A loss that is finite with gradients that are not: the loss scale was too large, if it can still be lowered.
        overflow = ~finite & jnp.isfinite(loss) & (state.loss_scale > SMALLEST_LOSS_SCALE)
        return jnp.where(overflow, jnp.int32(OVERFLOW), outcome)

    def __call__(self, state: TrainState, batch: Batch, dropout_key: Any) -> tuple[TrainState, StepMetrics]:
        optimizer = self.optimizer
        with jax.numpy_dtype_promotion("strict"):
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, state.step)
            # What depends on the whole batch is worked out before the batch is cut into micro batches.
            batch = getattr(self.gradients_of.loss, "weigh", dict)(batch)
            scaled = self.loss_scale_growth_steps > 0
            rows = batch["input_ids"].shape[0] // self.accumulation_steps
            # In float16 the mean of a micro batch is scaled, not its sum, which would overflow much earlier.
            factor = state.loss_scale / jnp.float32(rows) if scaled else jnp.ones((), jnp.float32)
            gradients, loss_sum, weight = self.gradients_of(state, batch, key, factor)
            unscale = jnp.where(weight > 0, 1.0 / (jnp.maximum(weight, 1e-30) * factor), 0.0)
            grad_norm = global_norm(gradients, self.sharded) * unscale
            loss = loss_sum / jnp.maximum(weight, 1e-30)
            finite = jnp.isfinite(grad_norm) & jnp.isfinite(loss_sum)
            outcome = self._outcome(state, loss, grad_norm, finite)
            learning_rate = optimizer.schedule(state.step) * state.learning_rate_factor
            trainable, optimizer_state = optimizer.update(
                state.trainable,
                state.optimizer,
                gradients,
                learning_rate=learning_rate,
                gradient_factor=optimizer.clip_factor(grad_norm) * unscale,
                apply=outcome == APPLIED,
            )
            loss_scale, finite_steps = state.loss_scale, state.finite_steps
            if scaled:
                loss_scale, finite_steps = _next_loss_scale(state, finite, self.loss_scale_growth_steps)
            frozen = state.frozen
            if self.masks is not None:
                frozen = self.masks(state.step + jnp.int32(1), trainable, frozen)
            guard = self.guard.record(state.guard, outcome, loss, grad_norm)
            ended = (guard.reason != 0) & (state.first_bad_step == NO_BAD_STEP)
            metrics = StepMetrics(
                loss_sum=loss_sum,
                weight=weight,
                grad_norm=grad_norm,
                learning_rate=learning_rate,
                tokens=count_tokens(batch),
                loss_scale=state.loss_scale,
                outcome=outcome,
            )
            return state.replace(
                step=state.step + jnp.int32(1),
                trainable=trainable,
                frozen=frozen,
                optimizer=optimizer_state,
                loss_scale=loss_scale,
                finite_steps=finite_steps,
                first_bad_step=jnp.where(ended, state.step, state.first_bad_step),
                guard=guard,
            ), metrics


def make_train_step(
    forward: Forward,
    loss: LossFunction,
    optimizer: Optimizer,
    kinds: Mapping[str, str],
    accumulation_steps: int = 1,
    *,
    shardings: TrainState | None = None,
    mesh: Mesh | None = None,
    loss_scale_growth_steps: int = 0,
    guard: StepGuard = StepGuard(),
    fixed: FixedLeaves | None = None,
    masks: MaskUpdate | None = None,
) -> Any:
    """Compiles-on-demand one optimizer step.

    The gradient is that of ``sum of weighted losses / sum of weights`` over the whole batch, whatever the number of micro
    batches. A step that the guard leaves out changes neither parameters nor optimizer; the number of the one that was one too
    many is kept in ``first_bad_step``. With a loss scale (float16), overflow halves the scale instead, and ``loss_scale_growth_steps``
    finite steps in a row double it.

    Args:
      forward: ``forward(params, batch, dropout_key=...)``.
      loss: Weighted sum of losses and of weights of a (micro) batch.
      optimizer: The optimizer of the state.
      kinds: Kinds of typed leaves, from ``create_state``.
      accumulation_steps: Micro batches per step; they run one after the other.
      shardings: ``state_shardings``, where the state is split over a mesh.
      mesh: The mesh of ``shardings``.
      loss_scale_growth_steps: Finite steps after which the loss scale doubles; 0 without loss scale.
      guard: Which steps are left out.
      fixed: Leaves that ``forward`` finds in its parameters beside those of the state.
      masks: Changes masks after the update of some steps; None where none change.

    Returns:
      A jitted ``step(state, batch, dropout_key) -> (state, StepMetrics)`` that donates (overwrites) its state. The key of
      a step is ``fold_in(dropout_key, state.step)``; None switches dropout off.
    """
    inner = shardings
    if fixed is not None:
        kinds = {**kinds, **fixed.kinds}
        inner = None if shardings is None else shardings.replace(frozen={**shardings.frozen, **fixed.shardings})
    gradients_of = _Gradients(forward, loss, kinds, accumulation_steps, inner, mesh)
    sharded = mesh is not None and mesh.size > 1
    step = _Step(gradients_of, optimizer, accumulation_steps, sharded, loss_scale_growth_steps, guard, masks)
    out_shardings = None if shardings is None or mesh is None else (shardings, replicated(mesh))
    if fixed is None:
        return jax.jit(step, donate_argnums=(0,), out_shardings=out_shardings)
    return StepWithFixed(jax.jit(fixed.join(step), donate_argnums=(0,), out_shardings=out_shardings), fixed)


def make_norms(optimizer: Optimizer, sharded: bool = False) -> Callable[[TrainState, Any], dict[str, jax.Array]]:
    """Compiles-on-demand the norms of parameters and of the last update.

    They are worked out from the state after a step. Inside the step, they would need the parameters before and after it at once, which
    costs a copy of all of them even where a condition skips it; outside, steps that are not logged cost nothing.

    Args:
      optimizer: The optimizer of the state.
      sharded: Whether the state is split over devices.

    Returns:
      A jitted ``(state, learning rate of the last step) -> {"param_norm": ..., "update_norm": ...}``; the second only for rules that can
      tell it (``Optimizer.last_update``), and zero where the step's update was left out.
    """

    def measure(state: TrainState, learning_rate: jax.Array) -> dict[str, jax.Array]:
        with jax.numpy_dtype_promotion("strict"):
            found = {"param_norm": global_norm(state.trainable, sharded)}
            update = optimizer.last_update(state.trainable, state.optimizer, learning_rate)
            if update is not None:
                found["update_norm"] = global_norm(update, sharded)
            return found

    return jax.jit(measure)
