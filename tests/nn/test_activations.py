"""Activations: values and gradients against formulas in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.errors import ConfigError
from flaxbert.nn.activations import ACTIVATIONS, get_activation

POINTS = np.concatenate([np.linspace(-8, 8, 161) + 0.003, [-30.0, 30.0]])
POINTS = POINTS[np.abs(POINTS - 6) > 0.05]  # relu6 has a kink at 6, which bfloat16 rounds onto

FLOAT32_TOLERANCE = 2e-6
"""Absolute plus relative: float32 rounds at 6e-8, and erf, tanh and exp are polynomials with an error of a few units."""

SLOPE_TOLERANCE = 2e-5
"""For gradients: those of the tanh form multiply the rounding of 1 - tanh**2 by up to x**3."""

BFLOAT16_TOLERANCE = 3e-2
"""bfloat16 rounds at 2**-9 = 0.002; JAX computes activations step by step in the type of their input."""


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normal(x):
    return np.array([0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x])


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


FORMULAS = {
    "gelu": lambda x: x * normal(x),
    "gelu_python": lambda x: x * normal(x),
    "gelu_new": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "silu": lambda x: x * sigmoid(x),
    "swish": lambda x: x * sigmoid(x),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "linear": lambda x: x,
}


def assert_near(actual, expected, tolerance):
    actual = np.asarray(actual, np.float64)
    np.testing.assert_array_less(np.abs(actual - expected), tolerance * (1 + np.abs(expected)))


def test_every_activation_has_a_formula_here():
    assert FORMULAS.keys() == ACTIVATIONS.keys()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_and_gradients(name):
    function, formula = get_activation(name), FORMULAS[name]
    points = jnp.asarray(POINTS, jnp.float32)
    exact = np.asarray(points, np.float64)
    slope = (formula(exact + 1e-6) - formula(exact - 1e-6)) / 2e-6
    values, gradients = jax.jit(lambda x: (function(x), jax.grad(lambda x: function(x).sum())(x)))(points)
    assert values.dtype == gradients.dtype == jnp.float32
    assert_near(values, formula(exact), FLOAT32_TOLERANCE)
    assert_near(gradients, slope, SLOPE_TOLERANCE)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_low_precision_keeps_its_type_and_stays_near(name):
    function, formula = get_activation(name), FORMULAS[name]
    points = jnp.asarray(POINTS, jnp.bfloat16)
    exact = np.asarray(points, np.float64)
    slope = (formula(exact + 1e-6) - formula(exact - 1e-6)) / 2e-6
    values, gradients = jax.jit(lambda x: (function(x), jax.grad(lambda x: function(x).sum())(x)))(points)
    assert values.dtype == gradients.dtype == jnp.bfloat16
    assert_near(values, formula(exact), BFLOAT16_TOLERANCE)
    assert_near(gradients, slope, BFLOAT16_TOLERANCE)


def test_gelu_of_bfloat16_is_the_exact_one_but_for_rounding_and_a_ten_thousandth():
    points = jnp.asarray(np.concatenate([np.linspace(-12, 12, 4801), [-1e30, -1e4, 1e4]]), jnp.bfloat16)
    exact = np.asarray(points, np.float64) * normal(np.asarray(points, np.float64))
    values = np.asarray(jax.jit(get_activation("gelu"))(points), np.float64)
    np.testing.assert_array_less(np.abs(values - exact), np.abs(exact) * 2.0**-8 + 1e-4)
    assert values[-3:].tolist() == [0.0, 0.0, float(points[-1])]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_no_value_or_gradient_is_nan_far_out(name):
    function = get_activation(name)
    far = jnp.asarray([-1e30, -1e4, 0.0, 1e4], jnp.float32)
    assert np.isfinite(np.asarray(function(far))).all()
    assert np.isfinite(np.asarray(jax.jit(jax.grad(lambda x: function(x).sum()))(far[1:]))).all()


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"'gelu_neu'.*Did you mean 'gelu_new'"):
        get_activation("gelu_neu")
