"""Intervals that hold what they promise."""

import math

import numpy as np
import pytest

from flaxbert.errors import ConfigError, DataError
from flaxbert.evaluation.bootstrap import Interval, bootstrap_interval


def test_accuracy_interval_is_near_the_normal_one():
    labels = np.zeros(1000, np.int64)
    predictions = (np.arange(1000) >= 800).astype(np.int64)
    interval = bootstrap_interval(predictions, labels, num_resamples=2000)
    half = 1.96 * math.sqrt(0.8 * 0.2 / 1000)
    assert interval.value == pytest.approx(0.8)
    assert interval.low == pytest.approx(0.8 - half, abs=0.004)
    assert interval.high == pytest.approx(0.8 + half, abs=0.004)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng, hits = np.random.default_rng(0), 0
    for trial in range(200):
        predictions = (rng.random(200) >= 0.7).astype(np.int64)
        interval = bootstrap_interval(predictions, np.zeros(200, np.int64), num_resamples=200, seed=trial)
        hits += interval.low <= 0.7 <= interval.high
    assert 178 <= hits <= 199  # 95 % of 200 is 190; four standard deviations are 12


def test_paired_difference_is_narrower_than_two_intervals():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    first = np.where(rng.random(400) < 0.3, 1 - labels, labels)
    second = np.where((first != labels) & (rng.random(400) < 0.3), labels, first)
    difference = bootstrap_interval(first, labels, other=second)
    assert difference.value == pytest.approx((second == labels).mean() - (first == labels).mean())
    assert difference.excludes_zero()
    single = bootstrap_interval(second, labels)
    assert difference.high - difference.low < single.high - single.low


def test_equal_predictions_differ_by_nothing():
    labels = np.array([0, 1, 1, 0])
    interval = bootstrap_interval(labels, labels, "f1_macro", other=labels, num_resamples=20)
    assert (interval.value, interval.low, interval.high) == (0.0, 0.0, 0.0)
    assert not interval.excludes_zero()


def test_the_seed_decides():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=50), rng.normal(size=50)
    first = bootstrap_interval(scores, labels, "spearman", num_resamples=50, seed=1)
    assert first == bootstrap_interval(scores, labels, "spearman", num_resamples=50, seed=1)
    assert first != bootstrap_interval(scores, labels, "spearman", num_resamples=50, seed=2)


def test_any_function_will_do():
    interval = bootstrap_interval(np.arange(5.0), np.zeros(5), lambda p, y: float(np.median(p - y)), num_resamples=200)
    assert interval.value == 2.0
    assert 0.0 <= interval.low <= 2.0 <= interval.high <= 4.0


def test_what_can_not_be_resampled():
    with pytest.raises(ConfigError, match="Did you mean 'accuracy'"):
        bootstrap_interval(np.zeros(2), np.zeros(2), "acuracy")
    with pytest.raises(DataError, match="same, non-empty examples"):
        bootstrap_interval(np.zeros(2), np.zeros(3))
    with pytest.raises(DataError, match="same, non-empty examples"):
        bootstrap_interval(np.zeros(0), np.zeros(0))
    with pytest.raises(ConfigError, match="confidence in"):
        bootstrap_interval(np.zeros(2), np.zeros(2), confidence=1.0)
    with pytest.raises(DataError, match="not finite"):
        bootstrap_interval(np.zeros(2), np.zeros(2), lambda p, y: math.nan, num_resamples=2)


def test_an_interval_that_touches_zero_shows_no_difference():
    assert not Interval(0.1, 0.0, 0.2).excludes_zero()
    assert Interval(-0.1, -0.2, -0.01).excludes_zero()
