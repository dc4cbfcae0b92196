"""Pruning by what weights give on measured inputs: which go, what the others take over, and what is refused."""

import numpy as np
import pytest

from flaxbert.core.rules import Rule
from flaxbert.core.trees import stack_layers
from flaxbert.errors import ConfigError, ShapeError
from flaxbert.transforms import BlockSparsity, GroupSparsity, MagnitudeSparsity, default_sparsity_rules, sparsify
from flaxbert.transforms.rounding import DAMPING
from flaxbert.transforms.statistics import InputStatistics
from tests.transforms.test_quantize import tree


def inputs_of(size, seed=0, rows=400):
    """Correlated inputs of very different sizes."""
    random = np.random.default_rng(seed)
    return (
        random.standard_normal((rows, size)) @ (random.standard_normal((size, size)) * np.logspace(0, -1, size))
    ).astype(np.float32)


def statistics_of(inputs):
    moment = inputs.T.astype(np.float64) @ inputs / len(inputs)
    return InputStatistics(
        len(inputs), inputs.min(axis=0), inputs.max(axis=0), np.abs(inputs).mean(axis=0), None, moment
    )


def prune(kernel, spec, inputs):
    params, report = sparsify(
        {"layer": {"kernel": kernel}}, [Rule(".*", spec)], {"layer.kernel": statistics_of(inputs)}
    )
    return params["layer"]["kernel"], report


KERNEL = np.random.default_rng(1).standard_normal((144, 10)).astype(np.float32)
SPECS = [
    GroupSparsity(2, 4, "second_moment"),
    GroupSparsity(1, 3, "second_moment"),
    MagnitudeSparsity(0.5, criterion="second_moment"),
]


@pytest.mark.parametrize("spec", SPECS, ids=["2:4", "1:3", "half"])
def test_outputs_change_far_less_than_where_the_smallest_go(spec):
    inputs = inputs_of(144)
    leaf, report = prune(KERNEL, spec, inputs)
    leaf.validate("leaf")
    plain = GroupSparsity(spec.num_kept, spec.group_size) if isinstance(spec, GroupSparsity) else MagnitudeSparsity(0.5)
    smallest, _ = prune(KERNEL, plain, inputs)
    outputs = inputs @ KERNEL
    error, other = (np.square(inputs @ np.asarray(one.materialize()) - outputs).sum() for one in (leaf, smallest))
    assert error < 0.5 * other
    mask = np.asarray(leaf.mask)
    assert not np.asarray(leaf.values)[~mask].any()
    if isinstance(spec, GroupSparsity):
        groups = mask.reshape(-1, spec.group_size, mask.shape[1])
        assert (groups.sum(axis=1) == spec.num_kept).all()
    else:
        assert report.kept_share == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("spec", SPECS[:2], ids=["2:4", "1:3"])
def test_inputs_that_have_nothing_in_common_leave_the_weights_alone(spec):
    generator = np.random.default_rng(0)
    inputs = np.eye(144, dtype=np.float32)[generator.permutation(144)] * 3
    leaf, _ = prune(KERNEL, spec, inputs)
    plain, _ = prune(KERNEL, GroupSparsity(spec.num_kept, spec.group_size), inputs)
    np.testing.assert_array_equal(leaf.mask, plain.mask)
    np.testing.assert_allclose(leaf.materialize(), plain.materialize(), rtol=1e-6)


def test_one_weight_that_goes_is_made_up_for_as_least_squares_would():
    inputs = inputs_of(3, rows=2000)
    kernel = np.asarray([[0.01], [1.0], [-2.0]], np.float32)
    leaf, _ = prune(kernel, GroupSparsity(2, 3, "second_moment"), inputs)
    kept = np.asarray(leaf.mask)[:, 0]
    assert kept.tolist() == [False, True, True]  # the first comes first, so both others can make up for it
    moment = inputs.T.astype(np.float64) @ inputs / len(inputs)
    damped = moment + DAMPING * np.trace(moment) / 3 * np.eye(3)
    best = kernel[1:, 0] + np.linalg.solve(damped[1:, 1:], moment[1:, 0] * kernel[0, 0])
    np.testing.assert_allclose(np.asarray(leaf.materialize())[1:, 0], best, rtol=1e-4)


def test_what_was_pruned_before_stays_pruned():
    inputs = inputs_of(144)
    first, _ = prune(KERNEL, MagnitudeSparsity(0.3), inputs)
    params, _ = sparsify({"layer": {"kernel": first}}, [Rule(".*", SPECS[0])], {"layer.kernel": statistics_of(inputs)})
    second = params["layer"]["kernel"]
    assert not (np.asarray(second.mask) & ~np.asarray(first.mask)).any()
    assert not np.asarray(second.materialize())[~np.asarray(first.mask)].any()


def test_what_can_not_be_made_up_for_is_refused():
    with pytest.raises(ConfigError, match="ranks within each matrix"):
        MagnitudeSparsity(0.5, "global", "second_moment")
    with pytest.raises(ConfigError, match="by magnitude or at random"):
        BlockSparsity(0.5, criterion="second_moment")
    with pytest.raises(ConfigError, match="'layer.kernel' is multiplied by is not known"):
        sparsify({"layer": {"kernel": KERNEL}}, [Rule(".*", SPECS[0])])
    with pytest.raises(ShapeError, match="not divisible by the group size 5"):
        prune(KERNEL, GroupSparsity(2, 5, "second_moment"), inputs_of(144))
    stacked = stack_layers(tree())
    names = ["encoder.layers.stacked.feed_forward.up.kernel"]
    statistics = {name: statistics_of(inputs_of(4)) for name in names}
    with pytest.raises((ConfigError, ShapeError)):
        sparsify(stacked, default_sparsity_rules(SPECS[0]), statistics)
