"""Plans of epochs hold each example once; buckets cover every length."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flaxbert.data.ordering import FILLER, default_length_buckets, plan_epoch, resolve_length_buckets
from flaxbert.errors import ConfigError

PLANS = {
    "lengths": st.lists(st.integers(1, 100), min_size=1, max_size=200).map(np.array),
    "batch_size": st.integers(1, 17),
    "seed": st.integers(0, 2**32 - 1),
    "epoch": st.integers(0, 1000),
    "shuffle": st.booleans(),
    "group_by_length": st.booleans(),
    "window_batches": st.integers(1, 9),
}


@given(**PLANS)
def test_each_example_is_in_one_batch_and_fillers_stand_at_the_end_of_the_last(lengths, batch_size, **options):
    plan = plan_epoch(lengths, batch_size, **options)
    num_steps = -(-len(lengths) // batch_size)
    assert plan.shape == (num_steps, batch_size)
    assert sorted(plan[plan != FILLER].tolist()) == list(range(len(lengths)))
    flat = plan.ravel()
    assert (flat[: len(lengths)] != FILLER).all()
    np.testing.assert_array_equal(plan, plan_epoch(lengths, batch_size, **options))


@given(lengths=PLANS["lengths"], batch_size=PLANS["batch_size"], seed=PLANS["seed"])
def test_grouping_within_one_window_leaves_no_batches_that_overlap_in_length(lengths, batch_size, seed):
    plan = plan_epoch(lengths, batch_size, seed=seed, epoch=0, window_batches=1000)
    spans = sorted((lengths[rows[rows >= 0]].min(), lengths[rows[rows >= 0]].max()) for rows in plan)
    assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(spans))


def test_epochs_and_seeds_differ_and_without_shuffling_the_order_is_kept():
    lengths = np.arange(1, 101) % 13 + 1
    orders = [plan_epoch(lengths, 8, seed=seed, epoch=epoch).tolist() for seed, epoch in [(0, 0), (0, 1), (1, 0)]]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    kept = plan_epoch(lengths, 8, seed=0, epoch=3, shuffle=False, group_by_length=False)
    assert kept.ravel()[:100].tolist() == list(range(100))


def test_the_batch_that_is_not_full_is_not_always_the_longest():
    lengths = np.arange(1, 34)
    last = [lengths[plan_epoch(lengths, 8, seed=0, epoch=epoch)[-1, 0]] for epoch in range(30)]
    assert len(set(last)) > 2


def test_grouping_keeps_to_its_windows():
    lengths = np.arange(1, 65)[::-1].copy()
    plan = plan_epoch(lengths, 4, seed=0, epoch=0, shuffle=False, window_batches=4)
    assert sorted(plan[:4].ravel().tolist()) == list(range(16))


@given(st.integers(1, 5000))
def test_buckets_rise_and_end_at_the_longest(longest):
    buckets = default_length_buckets(longest)
    assert buckets[-1] == longest
    assert list(buckets) == sorted(set(buckets))
    assert all(later <= 1.5 * earlier for earlier, later in itertools.pairwise(buckets))


def test_buckets_as_told():
    assert default_length_buckets(128) == (16, 24, 32, 48, 64, 96, 128)
    assert resolve_length_buckets((64, 32), 128) == (32, 64, 128)
    assert resolve_length_buckets((), 24) == (16, 24)
    with pytest.raises(ConfigError, match=r"data\.length_buckets holds 256.*data\.max_length 128"):
        resolve_length_buckets((32, 256), 128)
