"""Movement leaves: masked weights, scores whose gradient passes straight through, and what is left at the end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.core.arrays import SparseArray
from flaxbert.core.contraction import contract, take
from flaxbert.core.movement_array import MovementArray, gather, spread
from flaxbert.errors import ShapeError

SHAPES = {"weights": (4, 6), "blocks": (2, 3), "rows": (4, 1), "columns": (1, 6)}

EXACT = 1e-5
"""Absolute, for sums of a few float32 products of size about 1."""


def make_leaf(name="blocks", layers=()):
    random = np.random.default_rng(0)
    blocks = (*layers, *SHAPES[name])
    return MovementArray(
        values=jnp.asarray(random.standard_normal((*layers, 4, 6)), jnp.float32),
        scores=jnp.asarray(random.standard_normal(blocks), jnp.float32),
        mask=jnp.asarray(random.random(blocks) > 0.5),
    )


@pytest.mark.parametrize("layers", [(), (3,)])
@pytest.mark.parametrize("name", SHAPES)
def test_blocks_are_spread_and_gathered(name, layers):
    leaf = make_leaf(name, layers)
    whole = spread(leaf.scores, leaf.shape)
    assert whole.shape == leaf.shape == (*layers, 4, 6)
    size = leaf.values.size // leaf.scores.size
    np.testing.assert_allclose(gather(whole, leaf.scores.shape), leaf.scores * size, rtol=1e-6)
    assert np.array_equal(spread(np.asarray(leaf.scores), leaf.shape), whole)


@pytest.mark.parametrize("name", SHAPES)
def test_products_and_look_ups_see_the_masked_weights(name):
    leaf = make_leaf(name)
    dense = np.where(spread(np.asarray(leaf.mask), leaf.shape), leaf.values, 0)
    np.testing.assert_array_equal(leaf.materialize(), dense)
    inputs = jnp.asarray(np.random.default_rng(1).standard_normal((2, 3, 4)), jnp.float32)
    np.testing.assert_allclose(contract(inputs, leaf), inputs @ dense, atol=EXACT)
    np.testing.assert_array_equal(take(leaf, jnp.array([2, 0])), dense[[2, 0]])


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_reach_kept_weights_and_all_scores(name):
    leaf = make_leaf(name)
    inputs = jnp.asarray(np.random.default_rng(1).standard_normal((5, 4)), jnp.float32)
    factors = jnp.asarray(np.random.default_rng(2).standard_normal((5, 6)), jnp.float32)

    def loss(values, scores):
        return jnp.sum(contract(inputs, MovementArray(values, scores, leaf.mask)) * factors)

    by_values, by_scores = jax.grad(loss, argnums=(0, 1))(leaf.values, leaf.scores)
    dense_gradient = inputs.T @ factors
    mask = spread(leaf.mask, leaf.shape)
    np.testing.assert_allclose(by_values, jnp.where(mask, dense_gradient, 0.0), atol=EXACT)
    np.testing.assert_allclose(by_scores, gather(dense_gradient * leaf.values, leaf.scores.shape), atol=EXACT)


def test_what_is_settled_is_sparse_with_zeros():
    leaf = make_leaf()
    settled = leaf.settle()
    assert isinstance(settled, SparseArray)
    settled.validate("kernel")
    assert (settled.values[~settled.mask] == 0).all()
    np.testing.assert_array_equal(settled.materialize(), leaf.materialize())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": np.zeros((2, 2), np.float32)}, "no blocks of kernel@values"),
        ({"scores": np.zeros((3, 3), np.float32), "mask": np.zeros((3, 3), bool)}, "no blocks"),
        ({"mask": np.zeros((2, 3), np.float32)}, "a mask is boolean"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, message):
    leaf = make_leaf()
    leaf.validate("kernel")
    parts = {**leaf.stored_parts(), **changes}
    with pytest.raises(ShapeError, match=message):
        MovementArray(**parts).validate("kernel")
