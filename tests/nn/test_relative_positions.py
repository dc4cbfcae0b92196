"""Scores by distance, laid out in blocks, against the plain double sum; how much of them is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.nn.relative_positions import ordered_rows, relative_scores

BATCH, HEADS, WIDTH = 2, 3, 4


def draw(*shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("num_buckets", [-1, 8])
@pytest.mark.parametrize("length", [1, 2, 20, 64, 96, 128, 192])
def test_scores_in_blocks_are_those_of_every_pair(length, num_buckets):
    used, places = ordered_rows(length, num_buckets, 256)
    query, key = (draw(BATCH, HEADS, length, WIDTH, seed=seed) for seed in (0, 1))
    row_keys, row_queries = (draw(HEADS, len(used), WIDTH, seed=seed) for seed in (2, 3))
    scores = jax.jit(lambda *arrays: relative_scores(*arrays, None, places))(query, key, row_keys, row_queries)
    distance = np.arange(length)[:, None] - np.arange(length)[None, :]
    rows = places[distance + length - 1]
    expected = np.einsum("bhid,hijd->bhij", query, row_keys[:, rows].astype(np.float64))
    expected += np.einsum("bhjd,hijd->bhij", key, row_queries[:, rows].astype(np.float64))
    np.testing.assert_allclose(np.asarray(scores), expected, rtol=0, atol=1e-5)


def test_no_more_columns_are_computed_than_a_block_can_meet():
    length = 512
    used, places = ordered_rows(length, 256, 512)
    query = jnp.zeros((1, HEADS, length, WIDTH))
    rows = jnp.zeros((HEADS, len(used), WIDTH))
    closed = jax.make_jaxpr(lambda query, rows: relative_scores(query, query, rows, None, None, places))(query, rows)
    largest = max(np.prod(variable.aval.shape) for line in closed.eqns for variable in line.outvars)
    assert largest <= HEADS * length * (length + 64)
