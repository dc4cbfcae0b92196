import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.core.integer_dot import integer_dot


def draw(shape, seed):
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)


def exact(tokens, codes, axis):
    return tokens.astype(np.int64) @ (codes if axis == 0 else codes.T).astype(np.int64)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 3), (16, 128)])
@pytest.mark.parametrize("size", [(64, 24), (7, 3), (768, 40)])
def test_equals_the_exact_integer_product(axis, lead, size):
    tokens, codes = draw((*lead, size[0]), 0), draw(size if axis == 0 else size[::-1], 1)
    for run in (integer_dot, jax.jit(integer_dot, static_argnums=2)):
        result = run(jnp.asarray(tokens), jnp.asarray(codes), axis)
        assert result.dtype == jnp.int32
        np.testing.assert_array_equal(result, exact(tokens, codes, axis))


@pytest.mark.parametrize("sign", [-128, 127])
def test_longest_sum_does_not_overflow(sign):
    tokens, codes = np.full((8, 65_000), -128, np.int8), np.full((65_000, 8), sign, np.int8)
    np.testing.assert_array_equal(integer_dot(jnp.asarray(tokens), jnp.asarray(codes), 0), exact(tokens, codes, 0))


@pytest.mark.parametrize("axes", [(0, None), (1, None), (0, 0), (None, 1)])
def test_maps_over_a_batch_of_either_operand(axes):
    batch = 3
    lhs, rhs = [6, 16], [16, 10]
    for shape, axis in zip((lhs, rhs), axes, strict=True):
        if axis is not None:
            shape.insert(axis, batch)
    tokens, codes = draw(lhs, 2), draw(rhs, 3)
    result = jax.jit(jax.vmap(lambda left, right: integer_dot(left, right, 0), in_axes=axes))(tokens, codes)
    for index in range(batch):
        left = tokens if axes[0] is None else np.take(tokens, index, axes[0])
        right = codes if axes[1] is None else np.take(codes, index, axes[1])
        np.testing.assert_array_equal(result[index], exact(left, right, 0))
