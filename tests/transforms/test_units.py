"""Heads and neurons: where they lie, how much they weigh, and which of them give nothing."""

import numpy as np
import pytest

from flaxbert.core.arrays import SparseArray
from flaxbert.core.trees import flatten_names
from flaxbert.families import FAMILIES
from flaxbert.transforms.units import (
    UnitPlace,
    magnitude_scores,
    mask_units,
    random_scores,
    silent_units,
    take_units,
)
from tests.transforms.pruned import small_model, unit_axes, units_of


def test_entries_of_units_follow_the_parts_of_an_axis():
    kept = np.array([True, False, True])
    joined = UnitPlace("kernel", 1, 2, False)
    assert joined.entries(kept, 12).tolist() == [True, True, False, False, True, True] * 2
    rows = joined.by_unit(np.arange(12.0)[None], 3)
    assert rows.tolist() == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_says_where_its_units_lie(family):
    config, params, axes = small_model(family)
    leaves = flatten_names(params)
    for kind in unit_axes(config):
        units = units_of(config, params, axes, kind)
        assert len(units.blocks) == (1 if family == "albert" else 2)
        for block in units.blocks:
            assert block.num_units == (4 if kind == "heads" else 40)
            assert leaves[block.reader.leaf].shape[-1] == config.hidden_size
            for place in block.places:
                assert leaves[place.leaf].shape[place.axis] % (block.num_units * place.parts) == 0
        assert units.is_shared == (family == "mpnet" and kind == "heads")
        assert units.needs_even == (units.is_shared or family == "albert")


def test_magnitudes_are_norms_over_all_matrices_of_a_unit():
    config, params, axes = small_model("bert")
    leaves = flatten_names(params)
    scores = magnitude_scores(params, units_of(config, params, axes, "neurons"))
    up, down = (leaves[f"encoder.layers.1.feed_forward.{name}.kernel"] for name in ("up", "down"))
    expected = np.sqrt((up.astype(np.float64) ** 2).sum(axis=0) + (down.astype(np.float64) ** 2).sum(axis=1))
    np.testing.assert_allclose(scores["encoder.layers.1"], expected, rtol=1e-6)


def test_random_scores_are_those_of_their_seed():
    config, params, axes = small_model("bert")
    units = units_of(config, params, axes, "heads")
    first, again, other = (random_scores(units, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["encoder.layers.0"], other["encoder.layers.0"])


def test_masked_units_are_silent_and_their_biases_zero():
    config, params, axes = small_model("bert")
    units = units_of(config, params, axes, "heads")
    kept = {"encoder.layers.0": np.array([1, 0, 1, 1], bool), "encoder.layers.1": np.ones(4, bool)}
    masked = mask_units(params, units, kept)
    silent = silent_units(masked, units)
    assert silent["encoder.layers.0"].tolist() == [False, True, False, False]
    assert not silent["encoder.layers.1"].any()
    leaves = flatten_names(masked)
    value = leaves["encoder.layers.0.attention.value.kernel"]
    assert isinstance(value, SparseArray)
    assert np.flatnonzero(~np.asarray(value.mask)[0]).tolist() == list(range(8, 16))
    assert not leaves["encoder.layers.0.attention.value.bias"][8:16].any()
    assert (
        leaves["encoder.layers.1.attention.value.kernel"]
        is flatten_names(params)["encoder.layers.1.attention.value.kernel"]
    )
    small = flatten_names(take_units(masked, units, kept))
    assert small["encoder.layers.0.attention.value.kernel"].shape == (32, 24)


def test_units_that_all_layers_share_are_silent_where_they_are_in_all():
    config, params, axes = small_model("mpnet")
    units = units_of(config, params, axes, "heads")
    names = [block.name for block in units.blocks]
    first, second = np.array([0, 1, 1, 1], bool), np.array([0, 0, 1, 1], bool)
    both = mask_units(params, units, {names[0]: first, names[1]: second})
    assert [silent.tolist() for silent in silent_units(both, units).values()] == [[True, False, False, False]] * 2
