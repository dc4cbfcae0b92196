"""Shares, numbers and budgets over all layers."""

import numpy as np
import pytest

from flaxbert.errors import ConfigError
from flaxbert.transforms.budgets import UnitBudget, choose_units
from flaxbert.transforms.units import UnitBlock, UnitPlace, Units

PLACE = UnitPlace("kernel", 0, 1, True)


def make_units(sizes=(4, 4), shared=(), layers=None):
    names = [f"encoder.layers.{index}" for index in range(len(sizes))]
    numbers = range(len(sizes)) if layers is None else layers
    blocks = [UnitBlock(name, layer, size, (PLACE,)) for name, layer, size in zip(names, numbers, sizes, strict=True)]
    return Units("heads", tuple(blocks), shared)


SCORES = {"encoder.layers.0": np.array([1.0, 4.0, 3.0, 2.0]), "encoder.layers.1": np.array([9.0, 1.0, 1.0, 1.0])}


def chosen(budget, units=None, scores=None, even=False):
    kept = choose_units(units or make_units(), scores or SCORES, budget, even)
    return [np.flatnonzero(mask).tolist() for mask in kept.values()]


def test_a_share_goes_from_every_layer_and_the_best_stay():
    assert chosen(UnitBudget(0.5)) == [[1, 2], [0, 3]]
    assert chosen(UnitBudget(0.0)) == [[0, 1, 2, 3]] * 2
    assert chosen(UnitBudget(0.99)) == [[1], [0]]


def test_numbers_are_those_of_all_layers_or_of_each():
    assert chosen(UnitBudget(counts=(1,))) == [[1], [0]]
    assert chosen(UnitBudget(counts=(3, 1))) == [[1, 2, 3], [0]]
    assert chosen(UnitBudget(counts=(1,), multiple_of=2)) == [[1, 2], [0, 3]]


def test_a_global_budget_ranks_normalised_scores_and_empties_no_layer():
    assert chosen(UnitBudget(0.375, scope="global")) == [[0, 1, 2, 3], [0]]
    assert chosen(UnitBudget(0.99, scope="global")) == [[1], [0]]


def test_what_all_layers_share_is_ranked_together():
    assert chosen(UnitBudget(0.5), make_units(shared=(PLACE,))) == [[0, 1]] * 2


@pytest.mark.parametrize(
    ("budget", "units", "even"),
    [
        (UnitBudget(0.5, scope="global"), make_units(), True),
        (UnitBudget(0.5, scope="global"), make_units(shared=(PLACE,)), False),
        (UnitBudget(counts=(3, 1)), make_units(layers=(None, None)), False),
    ],
)
def test_different_numbers_where_all_must_be_alike_are_refused(budget, units, even):
    with pytest.raises(ConfigError, match="the same number in all"):
        chosen(budget, units, even=even)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 1.0}, r"rate is 1.0.*\[0, 1\)"),
        ({"rate": -0.1}, "rate is -0.1"),
        ({"counts": (0,)}, "keeps nothing"),
        ({"rate": 0.5, "counts": (1,)}, "exclude each other"),
        ({"counts": (1,), "scope": "global"}, "goes with a rate"),
        ({"multiple_of": 0}, "multiple_of is 0"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        UnitBudget(**options)


def test_numbers_that_do_not_fit_the_model_are_refused():
    with pytest.raises(ConfigError, match="3 numbers of heads.*2 layers"):
        chosen(UnitBudget(counts=(1, 1, 1)))
    with pytest.raises(ConfigError, match=r"5 heads can not be kept of encoder.layers.0, which has 4"):
        chosen(UnitBudget(counts=(5,)))
