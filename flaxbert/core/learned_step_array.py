"""Leaves of a model that is trained to be quantized: weights, and inputs, are rounded in every step, and the distances of their levels are trained."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxbert.core.arrays import TypedArray
from flaxbert.errors import ShapeError

SMALLEST_STEP = 1e-8
"""Steps are kept away from 0, where every number would be clipped."""

INPUT_LEVELS = (-128, 127)
"""Codes that inputs are rounded to."""


def learned_round(values: jax.Array, step: jax.Array, low: Any, high: Any, count: int) -> jax.Array:
    """Rounds to whole numbers of steps, straight through for gradients; the step learns too (Esser et al., 2020, equations 1 to 3).

    ``round(clip(v / s, low, high)) * s``. Its gradient with regard to ``v`` is 1 inside of the range and 0 outside; with regard to ``s`` it is
    ``round(v / s) - v / s`` inside and the clipped level outside, over ``sqrt(count * high)``.

    Args:
      values: What is rounded.
      step: Distance of two levels; broadcasts to the values.
      low: Smallest level.
      high: Largest level.
      count: Values that share a step.

    Returns:
      float32 numbers of the values' shape.
    """
    values, low, high = (jnp.asarray(array, jnp.float32) for array in (values, low, high))
    factor = jax.lax.rsqrt(jnp.float32(count) * jnp.maximum(high, jnp.float32(1.0)))
    scaled = step * factor
    step = jnp.maximum(jnp.abs(scaled + jax.lax.stop_gradient(step - scaled)), jnp.float32(SMALLEST_STEP))
    levels = jnp.clip(values / step, low, high)
    return (levels + jax.lax.stop_gradient(jnp.round(levels) - levels)) * step


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LearnedStepArray(TypedArray, kind="learned_step", parts=("values", "step", "levels"), computes_in=""):
    """A matrix in training that is rounded wherever it is used: ``dense = round(clip(values / step)) * step``, all of it trained.

    Attributes:
      values: float32, ``[..., in, out]``.
      step: float32, ``[..., groups, out]`` for kernels, ``[rows, groups]`` for tables; one group is the whole axis.
      levels: int32 ``[..., 1, 2]``: smallest and largest code; not trained.
    """

    values: Any
    step: Any
    levels: Any

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the values."""
        return np.dtype(self.values.dtype)

    @property
    def axis(self) -> int:
        """The contracted axis: -2 for kernels, -1 for tables."""
        return -2 if self.step.shape[-1] == self.values.shape[-1] else -1

    def logical_axes(self, part: str) -> tuple[int | None, ...]:
        """Returns the axes of values and steps; levels and the step of inputs have none of the matrix but those of stacked layers."""
        axes: list[int | None] = list(range(self.ndim))
        return tuple([*axes[:-2], None, None] if part in ("levels", "input_step") else axes)

    def materialize(self) -> jax.Array:
        """Returns the rounded weights in float32."""
        place, shape = self.ndim + self.axis, self.shape
        groups = self.step.shape[place]
        size = shape[place] // groups
        grouped = (*shape[:place], groups, size, *shape[place + 1 :])
        wide = lambda array: jnp.expand_dims(jnp.asarray(array), place + 1)
        low, high = wide(self.levels[..., :1]), wide(self.levels[..., 1:])
        rounded = learned_round(jnp.asarray(self.values).reshape(grouped), wide(self.step), low, high, size)
        return rounded.reshape(shape)

    def rows(self, indices: jax.Array) -> "LearnedStepArray":
        """Returns some rows of a table.

        Args:
          indices: Their numbers, ``[rows]``.
        """
        values, step = (jnp.take(part, indices, axis=0) for part in (self.values, self.step))
        return LearnedStepArray(values, step, self.levels)

    def round_inputs(self, inputs: Float[Array, "*batch in_axis"]) -> Float[Array, "*batch in_axis"]:
        """Returns what the matrix is multiplied by: here the inputs as they are.

        Args:
          inputs: Activations.
        """
        return inputs

    def validate(self, name: str = "leaf") -> None:
        """Checks that steps and levels belong to the values."""
        values, step, levels = (tuple(part.shape) for part in (self.values, self.step, self.levels))
        fits = len(values) == len(step) == len(levels) and all(v % s == 0 for v, s in zip(values, step, strict=True))
        others = [i for i in range(len(values)) if i != len(values) + self.axis]
        if not fits or any(values[i] != step[i] for i in others) or levels != (*values[:-2], 1, 2):
            raise ShapeError(f"{name}@step {step} and {name}@levels {levels} do not belong to {name}@values {values}.")
        if not jnp.issubdtype(self.levels.dtype, jnp.integer):
            raise ShapeError(f"{name}@levels has dtype {self.levels.dtype}, but levels are whole numbers.")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LearnedInputStepArray(
    LearnedStepArray,
    kind="learned_input_step",
    parts=("values", "step", "levels", "input_step"),
    computes_in="",
):
    """A kernel in training whose inputs are rounded too, to int8 with a step that is trained.

    Attributes:
      values: As for ``LearnedStepArray``.
      step: The same.
      levels: The same.
      input_step: float32, ``[..., 1, 1]``.
    """

    input_step: Any

    def round_inputs(self, inputs: Float[Array, "*batch in_axis"]) -> Float[Array, "*batch in_axis"]:
        """Returns the inputs rounded to their levels.

        Args:
          inputs: Activations.
        """
        step = jnp.asarray(self.input_step)[..., 0, 0]
        return learned_round(inputs, step, *INPUT_LEVELS, inputs.shape[-1]).astype(inputs.dtype)

    def validate(self, name: str = "leaf") -> None:
        """Checks the kernel, and that there is one step for its inputs."""
        super().validate(name)
        if self.axis != -2 or tuple(self.input_step.shape) != (*self.shape[:-2], 1, 1):
            raise ShapeError(f"{name}@input_step has shape {tuple(self.input_step.shape)}; a kernel has one number.")
