"""Learning rates over the steps of a run: a linear warm-up, then one of eight shapes."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flaxbert.config import TrainConfig
from flaxbert.errors import ConfigError

Schedule = Callable[[jax.Array], jax.Array]
"""Gives the float32 learning rate of a step; the first step of a run is 0."""

Shape = Callable[[Any], Any]
"""A schedule of optax or of our own."""

INVERSE_SQUARE_ROOT_TIMESCALE = 10_000
"""Steps over which the inverse square root schedule halves its rate twice, where there is no warm-up."""

DECAYS_PER_RUN = 10
"""Decays of the exponential and step schedules over a run whose ``decay_steps`` is 0."""


def num_warmup_steps(config: TrainConfig, num_steps: int) -> int:
    """Returns over how many steps the learning rate rises.

    Args:
      config: ``warmup_steps``, or ``warmup_rate`` where that is 0 (rounded up).
      num_steps: Optimizer steps of the whole run.

    Raises:
      ConfigError: The warm-up is longer than the run.
    """
    if config.warmup_steps > num_steps:
        raise ConfigError(
            f"train.warmup_steps is {config.warmup_steps}, but the run has only {num_steps} steps; "
            "use fewer warm-up steps or train.warmup_rate."
        )
    return config.warmup_steps or math.ceil(config.warmup_rate * num_steps)


def _inverse_square_root(peak: float, num_warmup: int) -> Shape:
    timescale = num_warmup or INVERSE_SQUARE_ROOT_TIMESCALE

    def schedule(step: jax.Array) -> jax.Array:
        return peak * jax.lax.rsqrt((step.astype(jnp.float32) + timescale) / timescale)

    return schedule


def _polynomial(peak: float, end: float, power: float, num_steps: int) -> Shape:
    # optax's own takes the power of a number that rounding makes negative at the last step: NaN for fractional powers.
    def schedule(step: jax.Array) -> jax.Array:
        remaining = jnp.clip(num_steps - step, 0, num_steps).astype(jnp.float32) / num_steps
        return (peak - end) * remaining**power + end

    return schedule


def _stable_then_decay(peak: float, end: float, decay_steps: int, num_steps: int) -> Shape:
    """Stays at the peak until the last ``decay_steps``, then falls with the root of the rest (Hägele et al., 2024, section 3)."""
    start = max(0, num_steps - decay_steps)

    def schedule(step: jax.Array) -> jax.Array:
        share = jnp.clip((step - start) / max(1, num_steps - start), 0.0, 1.0)
        return end + (peak - end) * (1.0 - jnp.sqrt(share))

    return schedule


def _after_warmup(config: TrainConfig, num_steps: int, num_warmup: int) -> Shape:
    peak, end = config.learning_rate, config.end_learning_rate
    rest = max(1, num_steps - num_warmup)
    decay_steps = config.decay_steps or max(1, num_steps // DECAYS_PER_RUN)
    if config.schedule == "linear":
        return optax.linear_schedule(peak, end, rest)
    if config.schedule == "cosine":
        return optax.cosine_decay_schedule(peak, rest, alpha=end / peak if peak else 0.0)
    if config.schedule == "polynomial":
        return _polynomial(peak, end, config.polynomial_power, rest)
    if config.schedule == "exponential":
        return optax.exponential_decay(peak, decay_steps, config.decay_rate, end_value=end)
    if config.schedule == "step":
        return optax.exponential_decay(peak, decay_steps, config.decay_rate, staircase=True)
    if config.schedule == "warmup_stable_decay":
        return _stable_then_decay(peak, end, config.decay_steps or max(1, num_steps // DECAYS_PER_RUN), rest)
    if config.schedule == "inverse_square_root":
        return _inverse_square_root(peak, num_warmup)
    return optax.constant_schedule(peak)


def make_schedule(config: TrainConfig, num_steps: int) -> Schedule:
    """Builds the learning rate of a run.

    Step ``s`` of the warm-up has ``learning_rate * s / warmup``, as in transformers: the first step has 0. The shapes
    that have an end reach ``end_learning_rate`` after ``num_steps``.

    Args:
      config: Peak, warm-up, shape and its settings.
      num_steps: Optimizer steps of the whole run.

    Returns:
      The schedule, for numbers of steps as int32 scalars.

    Raises:
      ConfigError: The warm-up is longer than the run.
    """
    num_warmup = num_warmup_steps(config, num_steps)
    shape = _after_warmup(config, num_steps, num_warmup)
    if num_warmup:
        shape = optax.join_schedules(
            [optax.linear_schedule(0.0, config.learning_rate, num_warmup), shape], [num_warmup]
        )

    def schedule(step: jax.Array) -> jax.Array:
        with jax.numpy_dtype_promotion("standard"):
            return jnp.asarray(shape(jnp.asarray(step, jnp.int32)), jnp.float32)

    return schedule
