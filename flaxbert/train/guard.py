"""What a step does about a loss or a gradient that is out of bounds: the update is left out, counted, and in the end too often."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flaxbert.config import TrainConfig

APPLIED, OVERFLOW, NOT_FINITE, LOSS_SPIKE, GRADIENT_SPIKE = range(5)
"""How a step ended: applied; left out since the loss scale was too large (which is normal in float16); left out for a reason."""

REASONS: dict[int, str] = {
    NOT_FINITE: "not_finite",
    LOSS_SPIKE: "loss_spike",
    GRADIENT_SPIKE: "gradient_spike",
}
"""Words for steps that were left out."""

HISTORY = 64
"""Applied steps whose loss and gradient norm are remembered."""

LEAST_HISTORY = 16
"""Applied steps before which nothing counts as a spike."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GuardState:
    """What the guard remembers; part of every checkpoint, so that a resumed run decides alike.

    Attributes:
      losses: Losses of the last applied steps, float32 ``[HISTORY]``, written round and round.
      grad_norms: Their gradient norms, float32 ``[HISTORY]``.
      count: Steps that were written into both, int32.
      skipped_in_row: Steps left out since the last applied one, int32.
      skipped: Steps left out in the whole run, int32.
      reason: How the step that was one too many ended, a key of ``REASONS``; 0 while there is none, int32.
    """

    losses: Any
    grad_norms: Any
    count: Any
    skipped_in_row: Any
    skipped: Any
    reason: Any


def new_guard_state() -> GuardState:
    """Returns the state before the first step."""
    zero = jnp.zeros((), jnp.int32)
    history = jnp.zeros((HISTORY,), jnp.float32)
    return GuardState(history, jnp.zeros_like(history), zero, zero, zero, zero)


def recent_median(history: Float[Array, "steps"], count: Int[Array, ""]) -> Float[Array, ""]:
    """Returns the (lower) median of what was written into a history; infinite before anything was.

    Args:
      history: Values, written round and round.
      count: How many were written so far.
    """
    size = history.shape[0]
    filled = jnp.arange(size, dtype=jnp.int32) < count
    ordered = jnp.sort(jnp.where(filled, history, jnp.float32(jnp.inf)))
    middle = jnp.maximum(jnp.minimum(count, jnp.int32(size)) - jnp.int32(1), jnp.int32(0)) // jnp.int32(2)
    return ordered[middle]


@dataclasses.dataclass(frozen=True)
class StepGuard:
    """Decides inside the compiled step which updates are left out, and when there were too many.

    All processes and devices see the same numbers, so they decide alike.

    Attributes:
      skip_not_finite: Whether a step that is not finite is left out and counted; otherwise the first one is one too many.
      loss_factor: A loss above this many times the median of recent steps is a spike; 0 for none.
      grad_norm_factor: The same for the gradient norm, before clipping.
      max_in_row: Most steps left out in a row.
      max_skipped: Most steps left out in the whole run.
    """

    skip_not_finite: bool = False
    loss_factor: float = 0.0
    grad_norm_factor: float = 0.0
    max_in_row: int = 3
    max_skipped: int = 100

    @classmethod
    def of(cls, config: TrainConfig) -> "StepGuard":
        """Returns the guard that a run asks for.

        Args:
          config: Training options.
        """
        return cls(
            config.skip_not_finite,
            config.spike_loss_factor,
            config.spike_grad_norm_factor,
            config.max_skipped_in_row,
            config.max_skipped,
        )

    def _spikes(
        self, value: Float[Array, ""], history: Float[Array, "steps"], count: Int[Array, ""], factor: float
    ) -> Bool[Array, ""]:
        if factor <= 0:
            return jnp.zeros((), jnp.bool_)
        return (count >= LEAST_HISTORY) & (value > jnp.float32(factor) * recent_median(history, count))

    def judge(
        self, state: GuardState, loss: Float[Array, ""], grad_norm: Float[Array, ""], finite: Bool[Array, ""]
    ) -> Int[Array, ""]:
        """Returns how a step ends, without regard to the loss scale.

        Args:
          state: What the guard remembers.
          loss: Mean loss of the step.
          grad_norm: Norm of its gradient before clipping.
          finite: Whether both are finite.
        """
        outcome = jnp.full((), APPLIED, jnp.int32)
        spikes = self._spikes(grad_norm, state.grad_norms, state.count, self.grad_norm_factor)
        outcome = jnp.where(spikes, jnp.int32(GRADIENT_SPIKE), outcome)
        spikes = self._spikes(loss, state.losses, state.count, self.loss_factor)
        outcome = jnp.where(spikes, jnp.int32(LOSS_SPIKE), outcome)
        return jnp.where(finite, outcome, jnp.int32(NOT_FINITE))

    def record(
        self, state: GuardState, outcome: Int[Array, ""], loss: Float[Array, ""], grad_norm: Float[Array, ""]
    ) -> GuardState:
        """Returns what the guard remembers after a step; nothing changes any more once there was one too many.

        Args:
          state: What it remembered before.
          outcome: How the step ended.
          loss: Its mean loss.
          grad_norm: Its gradient norm.
        """
        applied, skipped = outcome == APPLIED, outcome >= NOT_FINITE
        one, zero = jnp.int32(1), jnp.int32(0)
        place = state.count % jnp.int32(HISTORY)

        def write(history: jax.Array, value: jax.Array) -> jax.Array:
            return jnp.where(applied, history.at[place].set(value.astype(jnp.float32)), history)

        in_row = jnp.where(skipped, state.skipped_in_row + one, jnp.where(applied, zero, state.skipped_in_row))
        total = jnp.where(skipped, state.skipped + one, state.skipped)
        too_many = skipped & ((in_row > self.max_in_row) | (total > self.max_skipped))
        if not self.skip_not_finite:
            too_many = too_many | (outcome == NOT_FINITE)
        after = GuardState(
            losses=write(state.losses, loss),
            grad_norms=write(state.grad_norms, grad_norm),
            count=jnp.where(applied, state.count + one, state.count),
            skipped_in_row=in_row,
            skipped=total,
            reason=jnp.where(too_many, outcome, zero),
        )
        return jax.tree.map(lambda new, old: jnp.where(state.reason == zero, new, old), after, state)
