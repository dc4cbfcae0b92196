"""Row and column reductions against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.core.reductions import column_sum, compute_once, row_magnitude, row_max, row_sum
from tests.helpers import slow_unless

TOLERANCE = 1e-5
"""Relative to the sum of magnitudes: float32 rounds at 6e-8, and the longest sum has 3072 terms."""

WIDTHS = (1, 2, 7, 16, 17, 24, 30, 128, 384, 768, 1000, 3072)


def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("lead", slow_unless((2, 3).__eq__, [(), (5,), (2, 3)]))
def test_rows(lead, width):
    values = draw(*lead, width)
    for compiled in (False, True):
        sums, largest = ((jax.jit(f) if compiled else f)(jnp.asarray(values)) for f in (row_sum, row_max))
        assert sums.shape == largest.shape == (*lead, 1)
        np.testing.assert_array_equal(largest, values.max(axis=-1, keepdims=True))
        magnitude = (jax.jit(row_magnitude) if compiled else row_magnitude)(jnp.asarray(values))
        np.testing.assert_array_equal(magnitude, np.abs(values).max(axis=-1, keepdims=True))
        error = np.abs(np.asarray(sums, np.float64) - values.astype(np.float64).sum(axis=-1, keepdims=True))
        assert (error <= TOLERANCE * np.abs(values).sum(axis=-1, keepdims=True)).all()


@pytest.mark.parametrize("lead", [(1,), (5,), (2, 3), (2, 3, 4), (600, 3)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_columns(lead, dtype):
    values = jnp.asarray(draw(*lead, 12)).astype(dtype)
    sums = jax.jit(column_sum)(values)
    assert (sums.shape, sums.dtype) == ((12,), jnp.float32)
    exact, axes = np.asarray(values, np.float64), tuple(range(len(lead)))
    assert (np.abs(np.asarray(sums) - exact.sum(axis=axes)) <= TOLERANCE * np.abs(exact).sum(axis=axes)).all()


@pytest.mark.parametrize("function", [row_sum, row_max, row_magnitude])
def test_nan_and_infinity_reach_the_result(function):
    values = jnp.ones((3, 64)).at[0, 5].set(jnp.nan).at[1, 63].set(jnp.inf)
    result = np.asarray(jax.jit(function)(values))[:, 0]
    assert np.isnan(result[0])
    assert np.isposinf(result[1])
    assert np.isfinite(result[2])


def test_magnitude_of_negative_infinity():
    values = jnp.ones((1, 64)).at[0, 5].set(-jnp.inf)
    assert np.isposinf(np.asarray(jax.jit(row_magnitude)(values)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_fence_changes_no_bit(dtype):
    special = [
        0.0,
        -0.0,
        1.5,
        -3.25,
        np.inf,
        -np.inf,
        np.nan,
        float(jnp.finfo(dtype).max),
        float(jnp.finfo(dtype).tiny),
    ]
    values = jnp.asarray(special, dtype)
    for function in (compute_once, jax.jit(compute_once)):
        np.testing.assert_array_equal(np.asarray(function(values)).tobytes(), np.asarray(values).tobytes())


def test_a_fence_outlives_the_compiler_on_cpu():
    values = jnp.ones((4, 8))
    compiled = jax.jit(lambda array: compute_once(array * 2) + 1).lower(values).compile().as_text()
    assert ("divide(" in compiled) == (jax.default_backend() == "cpu")
