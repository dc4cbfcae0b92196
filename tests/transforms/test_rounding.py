"""Levels and codes: every weight gets its nearest level, and rounding that makes up for its errors changes outputs less."""

import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxbert.transforms.rounding import (
    affine_grid,
    binary_grid,
    gptq,
    pack_planes,
    round_groups,
    signed_grid,
    ternary_grid,
)

GRIDS = {
    "1": binary_grid,
    "ternary": ternary_grid,
    "2": lambda weights, axis: affine_grid(weights, axis, 2),
    "3": lambda weights, axis: affine_grid(weights, axis, 3),
    "4": signed_grid,
}
WEIGHTS = hnp.arrays(np.float32, (16, 3), elements=st.floats(-(2.0**60), 2.0**60, width=32))


def correlated(rows=400, width=64, seed=0):
    """Inputs of which a few directions are large, as those of networks are."""
    generator = np.random.default_rng(seed)
    return (
        generator.normal(size=(rows, 12)) @ generator.normal(size=(12, width))
        + 0.1 * generator.normal(size=(rows, width))
    ).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, st.sampled_from(list(GRIDS)))
def test_every_weight_gets_the_nearest_level_of_its_group(weights, name):
    codes, scale, offset = round_groups(weights, -2, 8, GRIDS[name])
    assert np.isfinite(scale).all()
    assert np.isfinite(offset).all()
    low, high = {"1": (0, 1), "ternary": (0, 2), "2": (0, 3), "3": (0, 7), "4": (-8, 7)}[name]
    levels = np.arange(low, high + 1)[:, None, None].astype(np.float64)
    spread = lambda part: np.repeat(part.astype(np.float64), 8, axis=0)
    distances = np.abs(levels * spread(scale) + spread(offset) - weights)
    own = np.take_along_axis(distances, (codes[None] - low).astype(int), axis=0)[0]
    assert (own <= distances.min(axis=0) + 1e-6 * np.abs(weights).max() + 1e-30).all()


@settings(max_examples=40, deadline=None)
@given(WEIGHTS, st.sampled_from(["1", "ternary", "2", "3"]))
def test_scales_and_offsets_are_what_bfloat16_holds(weights, name):
    for part in round_groups(weights, -2, 16, GRIDS[name])[1:]:
        assert np.array_equal(part, part.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_binary_and_ternary_levels_are_those_of_the_papers():
    weights = np.array([[0.1], [-0.2], [1.0], [-2.0]], np.float32)
    codes, scale, offset = round_groups(weights, -2, 4, binary_grid)
    mean = np.float32(np.float32(0.825).astype(ml_dtypes.bfloat16))
    assert codes[:, 0].tolist() == [1, 0, 1, 0]
    assert (scale[0, 0], offset[0, 0]) == (2 * mean, -mean)
    codes, scale, offset = round_groups(weights, -2, 4, ternary_grid)  # threshold 0.7 * 0.825
    assert (codes - 1)[:, 0].tolist() == [0, 0, 1, -1]
    assert (scale[0, 0], offset[0, 0]) == (1.5, -1.5)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize(("width", "group"), [(64, 16), (192, 64), (144, 48)])
def test_gptq_changes_the_outputs_less_than_nearest_levels(name, width, group):
    inputs = correlated(width=width)
    weights = np.random.default_rng(1).normal(size=(width, 20)).astype(np.float32)
    moment = inputs.T.astype(np.float64) @ inputs / len(inputs)

    def error(result):
        codes, scale, offset = result
        dense = codes * np.repeat(scale, group, axis=0) + np.repeat(offset, group, axis=0)
        return np.linalg.norm(inputs @ (dense - weights)) / np.linalg.norm(inputs @ weights)

    assert error(gptq(weights, moment, group, GRIDS[name])) < 0.75 * error(
        round_groups(weights, -2, group, GRIDS[name])
    )


def test_gptq_of_independent_inputs_is_rounding_to_nearest():
    weights = np.random.default_rng(1).normal(size=(32, 5)).astype(np.float32)
    for first, second in zip(
        gptq(weights, np.eye(32), 16, signed_grid), round_groups(weights, -2, 16, signed_grid), strict=True
    ):
        assert np.array_equal(first, second)


def test_gptq_keeps_pruned_weights_at_zero_and_lets_others_make_up_for_them():
    inputs = correlated()
    weights = np.random.default_rng(1).normal(size=(64, 20)).astype(np.float32)
    mask = np.random.default_rng(2).random((64, 20)) < 0.5
    moment = inputs.T.astype(np.float64) @ inputs / len(inputs)
    codes, scale, _ = gptq(weights, moment, 16, signed_grid, mask)
    assert not codes[~mask].any()
    dense = codes * np.repeat(scale, 16, axis=0)
    assert np.linalg.norm(inputs @ (dense - weights)) < 0.8 * np.linalg.norm(inputs @ (weights * mask - weights))


def test_channels_without_inputs_are_rounded_like_any_other():
    moment = np.diag(np.r_[np.zeros(16), np.ones(16)])
    weights = np.random.default_rng(1).normal(size=(32, 5)).astype(np.float32)
    codes, scale, _ = gptq(weights, moment, 16, signed_grid)
    assert np.abs(codes * np.repeat(scale, 16, axis=0) - weights).max() <= np.abs(weights).max() / 7


def test_planes_hold_one_bit_of_eight_neighbours_in_a_byte():
    codes = np.array([[1], [2], [3], [0], [0], [0], [0], [2]])
    assert pack_planes(codes, -2, 2).tolist() == [[[0b00000101]], [[0b10000110]]]
    assert pack_planes(codes.T, -1, 2).tolist() == [[[0b00000101], [0b10000110]]]
