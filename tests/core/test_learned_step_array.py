"""Rounding with learned steps: values, the gradients of the paper, products, look-ups and parts that do not fit."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from flaxbert.core.contraction import contract, take
from flaxbert.core.learned_step_array import LearnedInputStepArray, LearnedStepArray, learned_round
from flaxbert.errors import ShapeError
from tests.helpers import slow_unless

EXACT = 1e-5
"""Relative and absolute: float32 quotients."""


def kernel(groups=2, low=-8, high=7, stacked=False):
    generator = np.random.default_rng(0)
    values = generator.normal(size=(16, 3)).astype(np.float32)
    step = generator.uniform(0.05, 0.3, (groups, 3)).astype(ml_dtypes.bfloat16).astype(np.float32)
    parts = [values, step, np.array([[low, high]], np.int32)]
    return LearnedStepArray(*(jnp.asarray(np.stack([part] * 2) if stacked else part) for part in parts))


def by_hand(leaf, groups):
    step = np.repeat(np.asarray(leaf.step), 16 // groups, axis=-2)
    return np.clip(np.rint(np.asarray(leaf.values) / step), -8, 7) * step


@pytest.mark.parametrize("groups", slow_unless((2).__eq__, [1, 2, 4]))
@pytest.mark.parametrize("stacked", [False, True])
def test_weights_are_rounded_to_whole_numbers_of_steps(groups, stacked):
    leaf = kernel(groups, stacked=stacked)
    leaf.validate()
    np.testing.assert_allclose(leaf.materialize(), by_hand(leaf, groups), rtol=EXACT, atol=EXACT)
    inputs = jnp.ones((2, 16))
    if not stacked:
        np.testing.assert_allclose(contract(inputs, leaf), inputs @ leaf.materialize(), rtol=EXACT)


def test_gradients_are_those_of_the_paper():
    values = jnp.asarray([-5.0, -0.62, 0.1, 0.77, 4.0])
    step, low, high = jnp.asarray(0.5), -2, 1

    def total(values, step):
        return jnp.sum(learned_round(values, step, low, high, 5) * jnp.arange(1.0, 6.0))

    of_values, of_step = jax.grad(total, argnums=(0, 1))(values, step)
    weights = np.arange(1.0, 6.0)
    levels = np.asarray(values) / 0.5
    inside = (levels > low) & (levels < high)
    np.testing.assert_allclose(of_values, weights * inside, rtol=EXACT)
    slopes = np.where(inside, np.rint(levels) - levels, np.where(levels <= low, low, high))
    np.testing.assert_allclose(of_step, np.sum(slopes * weights) / np.sqrt(5 * high), rtol=EXACT)


def test_inputs_are_rounded_too_where_they_have_a_step():
    plain = kernel(1)
    leaf = LearnedInputStepArray(plain.values, plain.step, plain.levels, jnp.full((1, 1), 0.01))
    leaf.validate()
    inputs = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 16)), jnp.float32)
    rounded = np.clip(np.rint(np.asarray(inputs) / np.float32(0.01)), -128, 127) * np.float32(0.01)
    np.testing.assert_allclose(contract(inputs, leaf), contract(jnp.asarray(rounded), plain), rtol=1e-4, atol=1e-4)
    gradient = jax.grad(lambda leaf: jnp.sum(contract(inputs, leaf) ** 2), allow_int=True)(leaf)
    assert float(jnp.abs(gradient.input_step).max()) > 0
    assert float(jnp.abs(gradient.step).max()) > 0


def test_rows_of_a_table_are_rounded_when_they_are_looked_up():
    generator = np.random.default_rng(0)
    values, step = generator.normal(size=(10, 16)), generator.uniform(0.1, 0.2, (10, 2))
    leaf = LearnedStepArray(jnp.asarray(values, jnp.float32), jnp.asarray(step, jnp.float32), jnp.asarray([[-8, 7]]))
    leaf.validate()
    assert leaf.axis == -1
    indices = jnp.asarray([[3, 9], [0, 3]])
    np.testing.assert_allclose(take(leaf, indices), np.asarray(leaf.materialize())[np.asarray(indices)], rtol=EXACT)


@pytest.mark.parametrize(
    "changes",
    [
        {"step": jnp.ones((3, 3))},
        {"step": jnp.ones((2, 2))},
        {"levels": jnp.ones((1, 3), jnp.int32)},
        {"levels": jnp.ones((1, 2))},
    ],
)
def test_parts_that_do_not_fit_are_refused(changes):
    with pytest.raises(ShapeError, match="leaf@"):
        dataclasses.replace(kernel(), **changes).validate()
