"""Dropout: rates, independence and scale."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import PartitionSpec

from flaxbert.config import MeshConfig
from flaxbert.core.sharding import DATA, build_mesh
from flaxbert.nn.dropout import dropout, fold, keep_mask, key_words
from flaxbert.nn.softmax_attention import softmax_attention
from tests.helpers import slow_unless

SMALLEST_P = 1e-4
"""Below this a deviation counts as real; with fixed keys a passing test passes for ever."""


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_share_of_dropped_entries_is_the_rate(rate, seed):
    mask = np.asarray(keep_mask(jax.random.key(seed), rate, (200, 513)))
    counts = [np.count_nonzero(~mask), np.count_nonzero(mask)]
    assert scipy.stats.chisquare(counts, [mask.size * rate, mask.size * (1 - rate)]).pvalue > SMALLEST_P


def agreement(first, second):
    """Returns the p-value of two sets of coin flips being independent."""
    table = np.histogram2d(np.ravel(first).astype(float), np.ravel(second).astype(float), bins=2)[0]
    return scipy.stats.chi2_contingency(table, correction=False).pvalue


@pytest.mark.parametrize("step", [1, 2, 3, 4, 8, 32])
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_neighbouring_rows_and_columns_are_independent(rate, step):
    mask = np.asarray(keep_mask(jax.random.key(3), rate, (2048, 128)))
    assert agreement(mask[:, :-step], mask[:, step:]) > SMALLEST_P
    assert agreement(mask[:-step], mask[step:]) > SMALLEST_P


@pytest.mark.parametrize("seed", range(4))
def test_no_two_rows_or_columns_go_together(seed):
    """A mask made from a word per row and a word per column could repeat a row wherever two words are alike."""
    mask = np.asarray(keep_mask(jax.random.key(seed), 0.5, (512, 512))).astype(np.float64) * 2 - 1
    for rows in (mask, mask.T):
        correlation = rows @ rows.T / rows.shape[1]
        np.fill_diagonal(correlation, 0)
        # the largest of 512 * 511 / 2 independent ones is about 4.5 deviations of 1 / sqrt(512); 6.5 is a chance of 1e-5
        assert np.abs(correlation).max() < 6.5 / np.sqrt(512)
        assert correlation.std() == pytest.approx(1 / np.sqrt(512), rel=0.02)


def test_the_corners_of_rectangles_are_independent():
    """Row word plus column word must not leave a trace: of the four corners of a rectangle, the parity is a fair coin."""
    mask = np.asarray(keep_mask(jax.random.key(9), 0.5, (1024, 256)))
    for down, right in ((1, 1), (2, 5), (17, 64), (512, 128)):
        parity = mask[:-down, :-right] ^ mask[down:, :-right] ^ mask[:-down, right:] ^ mask[down:, right:]
        counts = [np.count_nonzero(parity), np.count_nonzero(~parity)]
        # rectangles overlap, so that counts vary up to twice as much as independent ones
        assert abs(counts[0] - counts[1]) < 2 * 4 * np.sqrt(sum(counts))


def test_rows_and_columns_have_the_spread_of_independent_flips():
    mask = np.asarray(keep_mask(jax.random.key(4), 0.1, (3000, 768)))
    for axis in (0, 1):
        dropped, length = (~mask).sum(axis=axis), mask.shape[axis]
        statistic = ((dropped - 0.1 * length) ** 2).sum() / (length * 0.1 * 0.9)
        assert SMALLEST_P < scipy.stats.chi2.cdf(statistic, dropped.size) < 1 - SMALLEST_P


def test_the_transposed_mask_is_the_mask_transposed():
    key = jax.random.key(1)
    np.testing.assert_array_equal(
        keep_mask(key, 0.3, (2, 3, 7, 5), transposed=True), np.swapaxes(keep_mask(key, 0.3, (2, 3, 5, 7)), -1, -2)
    )


def test_masks_of_different_places_and_layers_are_independent_and_of_equal_keys_equal():
    key = jax.random.key(5)
    masks = [
        np.asarray(keep_mask(fold(fold(key, layer), place), 0.5, (50_000,))) for layer in range(3) for place in range(3)
    ]
    for index, first in enumerate(masks):
        for second in masks[:index]:
            assert agreement(first, second) > SMALLEST_P
    np.testing.assert_array_equal(masks[4], keep_mask(fold(fold(key, 1), 1), 0.5, (50_000,)))


def test_masks_of_successive_steps_are_independent():
    masks = [np.asarray(keep_mask(jax.random.fold_in(jax.random.key(0), step), 0.5, (100, 500))) for step in range(5)]
    for first, second in itertools.pairwise(masks):
        assert agreement(first, second) > SMALLEST_P


def test_places_and_layers_have_keys_of_their_own():
    base = key_words(jax.random.key(0))
    words = [
        base,
        *(fold(base, place) for place in range(64)),
        *(fold(fold(base, layer), place) for layer in range(24) for place in range(3)),
    ]
    assert len({tuple(np.asarray(pair).tolist()) for pair in words}) == len(words)


def test_scanned_and_unrolled_layer_numbers_give_one_key():
    base = jax.random.key(3)
    np.testing.assert_array_equal(fold(base, 5), fold(base, jnp.int32(5)))


def test_the_rate_is_not_rounded_to_coarse_steps():
    size = 4_000_000
    dropped = size - int(jnp.sum(keep_mask(jax.random.key(0), 0.001, (2000, 2000)), dtype=jnp.int32))
    assert dropped == pytest.approx(size * 0.001, abs=5 * np.sqrt(size * 0.001))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_kept_entries_are_scaled_up_so_that_the_mean_stays(dtype):
    inputs = jnp.full((300, 301), 2.0, dtype)
    outputs = dropout(inputs, jax.random.key(0), 0.1)
    assert outputs.dtype == dtype
    values = np.unique(np.asarray(outputs, np.float32))
    np.testing.assert_allclose(values, [0.0, 2 / (1 - 0.1)], rtol=1e-2)
    assert np.asarray(outputs, np.float32).mean() == pytest.approx(2.0, rel=1e-2)


def test_gradients_see_the_same_mask():
    inputs, key = jnp.linspace(1.0, 2.0, 1000), jax.random.key(2)
    outputs, gradient = jax.jit(lambda x: (dropout(x, key, 0.3), jax.grad(lambda x: dropout(x, key, 0.3).sum())(x)))(
        inputs
    )
    np.testing.assert_array_equal(np.asarray(outputs) == 0, np.asarray(gradient) == 0)
    np.testing.assert_allclose(np.unique(gradient), [0, 1 / (1 - 0.3)], rtol=1e-6)


def test_without_key_or_rate_inputs_come_back_as_they_are():
    inputs = jnp.ones(3)
    assert dropout(inputs, None, 0.5) is inputs
    assert dropout(inputs, jax.random.key(0), 0.0) is inputs
    assert fold(None, 3) is None


@pytest.mark.parametrize("shape", [(1,), (3,), (5, 7), (2, 3, 5)])
def test_masks_have_any_shape(shape):
    assert keep_mask(jax.random.key(0), 0.5, shape).shape == shape


@pytest.mark.parametrize("shape", slow_unless((2, 3, 7, 5).__eq__, [(3, 7, 5), (2, 3, 7, 5)]))
def test_the_mask_of_a_part_is_that_part_of_the_mask(shape):
    key = jax.random.key(4)
    whole = np.asarray(keep_mask(key, 0.3, shape))
    first = keep_mask(key, 0.3, (*shape[:-2], 1, shape[-1]), num_rows=shape[-2])
    np.testing.assert_array_equal(first, whole[..., :1, :])
    rows = int(np.prod(shape[1:-1]))
    np.testing.assert_array_equal(keep_mask(key, 0.3, (shape[0] - 1, *shape[1:]), first_row=rows), whole[1:])
    swapped = keep_mask(key, 0.3, (shape[0] - 1, *shape[1:-2], shape[-1], shape[-2]), transposed=True, first_row=rows)
    np.testing.assert_array_equal(swapped, np.swapaxes(whole[1:], -1, -2))


def on_parts_of_the_batch(function, *arrays):
    """Runs a function on each device's rows, where the code sees no others."""
    mesh, spec = build_mesh(MeshConfig(data=4, fsdp=2)), PartitionSpec(DATA)
    return jax.jit(
        jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, axis_names={DATA}, check_vma=False)
    )(*arrays)


@pytest.mark.parametrize("shape", slow_unless((8, 3, 6).__eq__, [(8, 6), (8, 3, 6), (8, 2, 3, 6)]), ids=str)
def test_a_part_of_the_batch_has_its_part_of_the_masks(shape):
    key, ones = jax.random.key(7), jnp.ones(shape, jnp.float32)

    def drop(inputs):
        value, pull = jax.vjp(lambda array: dropout(array, key, 0.4, num_rows=5 if inputs.ndim > 2 else 0), inputs)
        return value, *pull(inputs)

    for part, whole in zip(on_parts_of_the_batch(drop, ones), drop(ones), strict=True):
        np.testing.assert_array_equal(np.asarray(part), np.asarray(whole))


def test_what_all_examples_share_has_one_mask():
    key, table = jax.random.key(7), jnp.ones((6, 5), jnp.float32)
    whole = dropout(table, key, 0.4, by_example=False)
    parts = on_parts_of_the_batch(
        lambda rows: rows + dropout(table, key, 0.4, by_example=False)[None], np.zeros((4, 6, 5), np.float32)
    )
    np.testing.assert_array_equal(np.asarray(parts), np.broadcast_to(whole, (4, 6, 5)))


def test_a_part_of_the_batch_drops_its_part_of_the_attention_weights():
    random = np.random.default_rng(0)
    arrays = [random.normal(size=(8, 2, 6, 4)).astype(np.float32) for _ in range(3)]
    bias, words = np.zeros((8, 1, 1, 6), np.float32), key_words(jax.random.key(7))

    def mix(query, key, value, bias):
        return softmax_attention(query, key, value, bias, words, 0.3)

    parts, whole = on_parts_of_the_batch(mix, *arrays, bias), jax.jit(mix)(*arrays, bias)
    np.testing.assert_allclose(np.asarray(parts), np.asarray(whole), rtol=1e-6, atol=1e-6)
