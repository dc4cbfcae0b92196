"""Windows: blocks of tokens against masked scores of all pairs, in results and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.nn.attention import attend_with_bias
from flaxbert.nn.local_attention import (
    choose_block,
    join_blocks,
    make_window,
    split_blocks,
    visible_bias,
    with_neighbours,
)
from flaxbert.nn.rotary import rotate, rotation

BATCH, HEADS, LENGTH, WIDTH = 2, 3, 23, 4
SAME_RESULTS = 1e-5
"""Absolute, for sums in another order."""

PADDED = np.where(np.arange(LENGTH)[None] < np.array([[LENGTH], [14]]), 1, 0)
PACKED = np.repeat([1, 2, 3, 0], [9, 3, 8, 3])[None].repeat(BATCH, axis=0)


def attend_near(arrays, segment_ids, packed, radius, block):
    positions = jnp.arange(LENGTH, dtype=jnp.int32)[None]
    window = make_window(segment_ids, packed, rotation(positions, WIDTH, 100.0), radius, block)
    parts = [jnp.swapaxes(split_blocks(array, block) if window.block else array, 1, 2) for array in arrays]
    query, key = (rotate(part, window.rotation) for part in parts[:2])
    value = parts[2]
    if window.block:
        key, value = (with_neighbours(part, BATCH, radius) for part in (key, value))
    mixed = jnp.swapaxes(attend_with_bias(query, key, value, window.bias, 0.0, None), 1, 2)
    mixed = join_blocks(mixed, BATCH, LENGTH) if window.block else mixed
    return mixed * (segment_ids != 0)[:, :, None, None].astype(jnp.float32)


@pytest.mark.parametrize(
    ("radius", "block"),
    [(0, 4), (2, 5), (5, 40), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in [(1, 1), (3, 3), (5, 8)])],
)
@pytest.mark.parametrize(("segment_ids", "packed"), [(PADDED, False), (PACKED, True)], ids=["padded", "packed"])
def test_blocks_equal_masked_scores_of_all_pairs(radius, block, segment_ids, packed):
    arrays = jax.random.normal(jax.random.key(0), (3, BATCH, LENGTH, HEADS, WIDTH))
    ids = jnp.asarray(segment_ids, jnp.int32)

    def total(arrays, block):
        mixed = attend_near(arrays, ids, packed, radius, block)
        return jnp.sum(jnp.sin(mixed)), mixed

    run = jax.jit(jax.grad(total, has_aux=True), static_argnums=1)
    (gradients, mixed), (expected, reference) = run(arrays, block), run(arrays, 0)
    np.testing.assert_allclose(mixed, reference, atol=SAME_RESULTS)
    np.testing.assert_allclose(gradients, expected, atol=SAME_RESULTS)
    assert np.abs(expected).max() > 0.01


def test_the_window_reaches_its_radius_and_no_farther():
    ids = jnp.ones((1, 9), jnp.int32)
    visible = np.asarray(visible_bias(ids, ids, 0, 2, False))[0, 0] == 0
    distances = np.abs(np.arange(9)[:, None] - np.arange(9))
    np.testing.assert_array_equal(visible, distances <= 2)


def test_a_window_as_wide_as_the_input_hides_nothing():
    ids, turned = jnp.ones((1, 9), jnp.int32), rotation(jnp.arange(9, dtype=jnp.int32)[None], WIDTH, 100.0)
    assert make_window(ids, False, turned, 8).bias is None
    assert make_window(ids, False, turned, 7).bias is not None


def test_blocks_are_for_long_inputs():
    assert choose_block(511, 64) == 0
    assert choose_block(512, 64) == 128
    assert choose_block(4096, 200) == 400
    assert choose_block(4096, 1) == 128
