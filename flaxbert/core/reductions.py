"""Sums and maxima along an axis in the forms that vectorise on CPU, plain reductions on other backends; and a fence.

The forms are functions of the module, not of a call, so that JAX traces each of them once for every shape.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

NUM_ONES_ROWS = 8
"""Rows of ones in ``column_sum``: a dot with a single row goes to a slow matrix-vector path on CPU."""

NUM_LANES = 16
"""Width below which folding stops paying: one 512-bit vector of float32."""


def _fold(values: jax.Array, combine: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    """Folds the last axis onto itself until it is one vector wide or odd; not at all where its size is symbolic."""
    while isinstance(values.shape[-1], int) and values.shape[-1] > NUM_LANES and values.shape[-1] % 2 == 0:
        half = values.shape[-1] // 2
        values = combine(values[..., :half], values[..., half:])
    return values


def _max_by_folding(array: jax.Array) -> jax.Array:
    return _fold(array, jnp.maximum).max(axis=-1, keepdims=True)


def _plain_max(array: jax.Array) -> jax.Array:
    return array.max(axis=-1, keepdims=True)


def row_max(values: Float[Array, "*rows columns"]) -> Float[Array, "*rows 1"]:
    """Returns the largest value along the last axis; on CPU by halving, four times faster than a reduction.

    Args:
      values: Array of any shape with at least one axis.
    """
    return lax.platform_dependent(values, cpu=_max_by_folding, default=_plain_max)


def _larger_magnitude(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.maximum(jnp.abs(left), jnp.abs(right))


def _magnitude_by_folding(array: jax.Array) -> jax.Array:
    return jnp.abs(_fold(array, _larger_magnitude)).max(axis=-1, keepdims=True)


def _plain_magnitude(array: jax.Array) -> jax.Array:
    return jnp.abs(array).max(axis=-1, keepdims=True)


def row_magnitude(values: Float[Array, "*rows columns"]) -> Float[Array, "*rows 1"]:
    """Returns the largest absolute value along the last axis.

    On CPU the absolute values are taken inside the halving; an array of them would be written to memory first.

    Args:
      values: Array of any shape with at least one axis.
    """
    return lax.platform_dependent(values, cpu=_magnitude_by_folding, default=_plain_magnitude)


def _sum_by_dot(array: jax.Array) -> jax.Array:
    ones = jnp.ones((array.shape[-1], NUM_ONES_ROWS), array.dtype)
    dimensions = (((array.ndim - 1,), (0,)), ((), ()))
    return lax.dot_general(array, ones, dimensions, preferred_element_type=jnp.float32)[..., :1]


def _plain_sum(array: jax.Array) -> jax.Array:
    return array.astype(jnp.float32).sum(axis=-1, keepdims=True)


def row_sum(values: Float[Array, "*rows columns"]) -> Float[Array, "*rows 1"]:
    """Returns the float32 sum along the last axis; on CPU as a dot with ones, which is computed once and vectorises.

    A reduction there is slow with the cure against wrong sums, and folding halves (as ``row_max`` does) computes whatever
    is fused into it several times: a step of BERT-base took 1.5 times as long.

    Args:
      values: Array of any shape with at least one axis.
    """
    return lax.platform_dependent(values, cpu=_sum_by_dot, default=_plain_sum)


def column_sum(values: Float[Array, "*rows columns"]) -> Float[Array, "columns"]:
    """Returns the float32 sum over all axes but the last, as a dot with ones (eight times faster on CPU).

    Args:
      values: Array of any shape with at least one axis.
    """
    rows = values.shape[:-1]
    ones = jnp.ones((NUM_ONES_ROWS, math.prod(rows)), values.dtype).reshape(NUM_ONES_ROWS, *rows)
    axes = tuple(range(len(rows)))
    dimensions = ((tuple(axis + 1 for axis in axes), axes), ((), ()))
    return lax.dot_general(ones, values, dimensions, preferred_element_type=jnp.float32)[0]


def _divide_by_one(array: jax.Array) -> jax.Array:
    return array / jnp.where(array == array, jnp.ones((), array.dtype), jnp.full((), 2, array.dtype))


def _unchanged(array: jax.Array) -> jax.Array:
    return array


def compute_once(values: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns the values as they are, from an array in memory that every use reads; not to be differentiated.

    XLA:CPU computes cheap elementwise chains again inside every use. Along the residual stream these chains grow with every
    layer, and a float32 training step of BERT-base then takes 1.4 times as long, its compilation twice. A division counts as
    expensive, so its result is computed once; the divisor, always 1, is written so that no pass can tell.

    Args:
      values: Floating-point array.
    """
    return lax.platform_dependent(values, cpu=_divide_by_one, default=_unchanged)
