"""Dense, embedding and layer norm against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flaxbert.nn.layers import Dense, Embed, LayerNorm, multiply_groups, truncated_normal

FLOAT32_TOLERANCE = 3e-6
"""Relative to the largest entry: 50 roundings of 6e-8."""

BFLOAT16_TOLERANCE = 1e-2
"""Relative to the largest entry: operands and result round at 2**-9 each."""

DTYPES = {jnp.float32: FLOAT32_TOLERANCE, jnp.bfloat16: BFLOAT16_TOLERANCE}


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_near(actual, expected, tolerance):
    difference = np.abs(np.asarray(actual, np.float64) - expected)
    assert difference.max() < tolerance * np.abs(expected).max()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_dense_is_a_product_plus_bias_in_the_compute_type(dtype):
    layer = Dense(12, 7, 0.5, dtype, nnx.Rngs(0))
    layer.bias.set_value(jnp.asarray(draw(7)))
    inputs = draw(2, 5, 12, seed=1)
    outputs = layer(jnp.asarray(inputs).astype(dtype))
    assert outputs.dtype == dtype
    kernel, bias = (np.asarray(leaf.get_value(), np.float64) for leaf in (layer.kernel, layer.bias))
    assert_near(outputs, inputs.astype(np.float64) @ kernel + bias, DTYPES[dtype])


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_groups_are_multiplied_by_their_own_kernels(dtype, groups):
    inputs, kernel = (jnp.asarray(draw(*shape)).astype(dtype) for shape in ((2, 5, 12), (groups, 12 // groups, 4)))
    outputs = jax.jit(multiply_groups)(inputs, kernel)
    assert outputs.dtype == jnp.float32
    split = np.asarray(inputs, np.float64).reshape(2, 5, groups, -1)
    expected = [split[:, :, group] @ np.asarray(kernel[group], np.float64) for group in range(groups)]
    assert_near(outputs, np.concatenate(expected, axis=-1), FLOAT32_TOLERANCE)


def normalise(inputs, scale, bias, epsilon):
    centred = inputs - inputs.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * scale + bias


@pytest.mark.parametrize("epsilon", [1e-12, 1e-5])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_layer_norm_equals_its_formula(dtype, epsilon):
    layer = LayerNorm(24, epsilon, dtype)
    layer.scale.set_value(jnp.asarray(1 + 0.1 * draw(24)))
    layer.bias.set_value(jnp.asarray(draw(24, seed=2)))
    inputs = jnp.asarray(5 + 3 * draw(4, 6, 24, seed=1)).astype(dtype)
    outputs = layer(inputs)
    assert outputs.dtype == dtype
    scale, bias = (np.asarray(leaf.get_value(), np.float64) for leaf in (layer.scale, layer.bias))
    assert_near(outputs, normalise(np.asarray(inputs, np.float64), scale, bias, epsilon), DTYPES[dtype])


def test_layer_norm_gradients_equal_those_of_a_plain_reference():
    graphdef, state = nnx.split(LayerNorm(16, 1e-12, jnp.float32))
    inputs, weights = jnp.asarray(2 + draw(3, 5, 16)), jnp.asarray(draw(3, 5, 16, seed=1))

    def reference(scale, bias, inputs):
        centred = inputs - inputs.mean(-1, keepdims=True)
        normalised = centred / jnp.sqrt((centred * centred).mean(-1, keepdims=True) + 1e-12)
        return jnp.sum((normalised * scale + bias) * weights)

    def loss(state, inputs):
        return jnp.sum(nnx.merge(graphdef, state)(inputs) * weights)

    state_gradient, inputs_gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))(state, inputs)
    expected = jax.jit(jax.grad(reference, argnums=(0, 1, 2)))(jnp.ones(16), jnp.zeros(16), inputs)
    pure = nnx.to_pure_dict(state_gradient)
    for actual, wanted in zip((pure["scale"], pure["bias"], inputs_gradient), expected, strict=True):
        assert_near(actual, np.asarray(wanted, np.float64), 1e-5)  # a difference of sums of 16 numbers of size 1


def test_layer_norm_keeps_its_precision_far_from_zero():
    inputs = (1e4 + draw(4, 64)).astype(np.float32)
    outputs = LayerNorm(64, 1e-12, jnp.float32)(jnp.asarray(inputs))
    # float32 inputs near 1e4 are 1e-3 apart; what is left after centring is exact to that.
    assert_near(outputs, normalise(inputs.astype(np.float64), 1.0, 0.0, 1e-12), 2e-3)


def test_layer_norm_of_a_constant_row_is_its_bias():
    outputs = np.asarray(LayerNorm(8, 1e-12, jnp.float32)(jnp.full((2, 8), 3.0)))
    assert np.isfinite(outputs).all()
    np.testing.assert_allclose(outputs, 0.0, atol=1e-6)


def test_embed_gives_float32_rows():
    layer = Embed(9, 4, 0.02, nnx.Rngs(0))
    rows = layer(jnp.asarray([[8, 0]], jnp.int32))
    assert (rows.shape, rows.dtype) == ((1, 2, 4), jnp.float32)
    np.testing.assert_array_equal(rows[0], layer.embedding.get_value()[np.array([8, 0])])


def test_new_weights_are_normal_cut_at_two_deviations():
    weights = np.asarray(truncated_normal(jax.random.key(0), (400, 400), 0.02))
    assert np.abs(weights).max() <= 0.04
    assert abs(weights.mean()) < 2e-4
    assert weights.std() == pytest.approx(0.02 * 0.8796, rel=0.01)  # deviation of a normal cut at two deviations
