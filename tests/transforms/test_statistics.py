"""Statistics of inputs: merged parts equal the whole, and ranges are what their names say."""

import numpy as np
import pytest

from flaxbert.errors import ConfigError
from flaxbert.transforms.statistics import (
    NUM_BINS,
    InputStatistics,
    largest_magnitude,
    merge_statistics,
    smoothing_scales,
)


def statistics(inputs, largest=None):
    edge = np.abs(inputs).max() if largest is None else largest
    return InputStatistics(
        count=len(inputs),
        low=inputs.min(axis=0),
        high=inputs.max(axis=0),
        mean_magnitude=np.abs(inputs).mean(axis=0),
        histogram=np.histogram(np.abs(inputs), NUM_BINS, (0, edge))[0],
        second_moment=inputs.T @ inputs / len(inputs),
    )


def test_merged_statistics_are_those_of_all_inputs():
    inputs = np.random.default_rng(0).normal(size=(50, 4))
    edge = np.abs(inputs).max()
    merged, whole = (
        merge_statistics(statistics(inputs[:13], edge), statistics(inputs[13:], edge)),
        statistics(inputs, edge),
    )
    for field in ("count", "low", "high", "mean_magnitude", "histogram", "second_moment", "largest"):
        np.testing.assert_allclose(getattr(merged, field), getattr(whole, field), rtol=1e-12)


def test_parts_without_histogram_or_moment_have_none_together():
    inputs = np.ones((3, 2))
    bare = InputStatistics(3, inputs[0], inputs[0], inputs[0])
    merged = merge_statistics(bare, statistics(inputs))
    assert merged.histogram is None
    assert merged.second_moment is None


def test_a_percentile_is_the_magnitude_below_which_its_share_lies():
    inputs = np.random.default_rng(0).normal(size=(4000, 8))
    inputs[0, 0] = 50
    found = statistics(inputs)
    assert largest_magnitude(found, "minmax", 99) == 50
    assert largest_magnitude(found, "percentile", 100) == 50
    for percentile in (90.0, 99.0, 99.9):
        exact = np.percentile(np.abs(inputs), percentile)
        assert exact <= largest_magnitude(found, "percentile", percentile) <= exact + 2 * 50 / NUM_BINS


def test_the_least_divergence_cuts_a_lonely_outlier_and_keeps_an_even_spread():
    generator = np.random.default_rng(0)
    normal = generator.normal(size=(4000, 8))
    normal[0, 0] = 50
    assert 3 < largest_magnitude(statistics(normal), "entropy", 99) < 10
    even = generator.uniform(-1, 1, size=(4000, 8))
    assert largest_magnitude(statistics(even), "entropy", 99) > 0.9


def test_inputs_that_are_always_zero_have_a_range():
    found = statistics(np.zeros((5, 3)), 1.0)
    assert all(largest_magnitude(found, name, 99) > 0 for name in ("minmax", "percentile", "entropy"))


def test_a_range_that_needs_a_histogram_says_so():
    ones = np.ones(2)
    with pytest.raises(ConfigError, match="needs histograms"):
        largest_magnitude(InputStatistics(1, ones, ones, ones), "entropy", 99)


def test_smoothing_hands_large_channels_to_the_weights():
    inputs = np.random.default_rng(0).normal(size=(100, 4)) * [1, 1, 1, 100]
    weights = np.ones((4, 3), np.float32)
    scales = smoothing_scales(statistics(inputs), weights, 0.5)
    largest = np.abs(inputs).max(axis=0)
    np.testing.assert_allclose(scales / scales[0], np.sqrt(largest / largest[0]), rtol=1e-5)
    assert np.prod(scales) == pytest.approx(1, rel=1e-4)
    np.testing.assert_allclose(smoothing_scales(statistics(inputs), weights, 0.0), 1, rtol=1e-5)
