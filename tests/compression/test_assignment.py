"""Bits by leaf: the best for a size, the smallest for a quality, and what to say when there is none."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxbert.compression.assignment import (
    Choice,
    assign_within_size,
    assignment_path,
    find_cheapest,
    find_choices,
    path_sizes,
    rules_of,
)
from flaxbert.errors import ConfigError
from flaxbert.transforms.quantize import QuantizationSpec, quantize

SPECS = {bits: QuantizationSpec(bits, 0 if bits == 8 else 16) for bits in (2, 3, 4, 8)}


def convex(sizes, drops):
    """Ways whose damage falls more slowly with every further byte."""
    damage, choices = sum(drops), []
    for bits, size, drop in zip((2, 3, 4, 8), sizes, sorted(drops, reverse=True), strict=True):
        damage -= drop
        choices.append(Choice(SPECS[bits], size, damage))
    return choices


LEAF = st.lists(st.integers(1, 100), min_size=4, max_size=4).map(
    lambda drops: convex((10, 20, 30, 40), [float(drop) for drop in drops])
)


@settings(max_examples=60, deadline=None)
@given(st.lists(LEAF, min_size=1, max_size=4), st.integers(40, 170))
def test_no_assignment_within_the_size_does_less_damage_for_equal_steps(leaves, budget):
    choices = {f"leaf{number}": ways for number, ways in enumerate(leaves)}
    smallest = 10 * len(leaves)
    if budget < smallest:
        with pytest.raises(ConfigError, match="the smallest has"):
            assign_within_size(choices, 0, budget)
        return
    chosen = assign_within_size(choices, 0, budget)
    own = {(name, choice.spec): choice for name, ways in choices.items() for choice in ways}
    damage = sum(own[name, spec].damage for name, spec in chosen.items())
    assert sum(own[name, spec].size_bytes for name, spec in chosen.items()) <= budget
    best = min(
        sum(choice.damage for choice in ways)
        for ways in itertools.product(*leaves)
        if sum(choice.size_bytes for choice in ways) <= budget
    )
    assert damage <= best + 1e-9


def test_ways_that_another_one_beats_are_never_taken():
    useless = Choice(SPECS[4], 30, 9.0)
    choices = {"leaf": [Choice(SPECS[2], 10, 10.0), useless, Choice(SPECS[8], 40, 0.0)]}
    path = assignment_path(choices)
    assert path == [{"leaf": SPECS[2]}, {"leaf": SPECS[8]}]
    assert path_sizes(choices, path) == [10, 40]


def test_the_smallest_that_keeps_the_metric_is_found_with_few_looks():
    choices = {f"leaf{number}": convex((10, 20, 30, 40), [8.0, 4.0, 2.0, 1.0]) for number in range(10)}
    looks = []

    def evaluate(specs):
        bits = np.mean([spec.bits for spec in specs.values()])
        looks.append(bits)
        return float(0.5 + bits / 20)

    found = find_cheapest(choices, evaluate, 0.9, 0.2, 5)
    assert found.metric >= 0.7
    assert len(looks) <= 7
    smaller = [specs for specs in assignment_path(choices) if np.mean([s.bits for s in specs.values()]) < 4]
    assert all(0.5 + np.mean([s.bits for s in specs.values()]) / 20 < 0.7 for specs in smaller)
    assert found.tried[0][0] < found.tried[-1][0]
    assert found.reference == 0.9


def test_a_metric_that_can_not_be_kept_names_the_best_found():
    choices = {"leaf": convex((10, 20, 30, 40), [8.0, 4.0, 2.0, 1.0])}
    with pytest.raises(ConfigError, match=r"within 0.01 of 0.9000: the best found has 0.8000 at 0.00 MB"):
        find_cheapest(choices, lambda specs: 0.4 + specs["leaf"].bits / 20, 0.9, 0.01, 0)


def test_choices_cost_what_the_quantized_leaves_do():
    weights = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    params = {"a": {"kernel": weights}, "b": {"kernel": weights * 2}, "c": {"bias": weights[0]}}
    names = {"a.kernel": list(SPECS.values()), "b.kernel": [SPECS[4], SPECS[8]]}
    before = weights.copy()
    found = find_choices(params, names, lambda name: {"a.kernel": 3.0, "b.kernel": 5.0}[name], {}, keeps=True)
    assert np.array_equal(weights, before)
    assert [choice.spec for choice in found["b.kernel"]] == [None, SPECS[4], SPECS[8]]
    assert found["a.kernel"][0].size_bytes == weights.nbytes
    for name, sensitivity, scale in (("a.kernel", 3.0, 1), ("b.kernel", 5.0, 2)):
        for choice in found[name][1:]:
            quantized, report = quantize(params, rules_of({name: choice.spec}))
            error = np.asarray(quantized[name[0]]["kernel"].materialize()) - weights * scale
            assert choice.damage == pytest.approx(sensitivity * np.sum(error.astype(np.float64) ** 2), rel=1e-4)
            assert choice.size_bytes == next(leaf for leaf in report.leaves if leaf.name == name).bytes_after
    damages = [choice.damage for choice in found["a.kernel"][1:]]
    assert damages == sorted(damages, reverse=True)
