"""Pruning: which weights go, that they stay away through training, and what is refused."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxbert.core.arrays import SparseArray
from flaxbert.core.contraction import contract
from flaxbert.core.rules import Rule
from flaxbert.core.trees import flatten_names, flatten_parts, stack_layers, unstack_layers
from flaxbert.errors import ConfigError, RuleError, ShapeError, WeightsError
from flaxbert.transforms import (
    GroupSparsity,
    MagnitudeSparsity,
    default_sparsity_rules,
    densify,
    quantize,
    sparsify,
)
from flaxbert.transforms.sparsify import group_mask, smallest_mask
from tests.transforms.test_quantize import tree


def everything(spec):
    return (Rule(".*", spec),)


MAGNITUDES = hnp.arrays(np.float32, st.integers(1, 40), elements=st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0]))


@settings(max_examples=100, deadline=None)
@given(MAGNITUDES, st.floats(0, 0.999))
def test_exactly_so_many_of_the_smallest_go_ties_included(magnitudes, rate):
    num_pruned = round(rate * magnitudes.size)
    mask = smallest_mask(magnitudes, num_pruned)
    assert np.count_nonzero(~mask) == num_pruned
    if 0 < num_pruned < magnitudes.size:
        assert magnitudes[~mask].max() <= magnitudes[mask].min()


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(np.float32, (12, 5), elements=st.floats(0, 4, width=32)),
    st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 4), (1, 3), (5, 6)]),
    st.booleans(),
)
def test_every_group_keeps_exactly_its_n_largest(magnitudes, pattern, transposed):
    axis = -1 if transposed else -2
    magnitudes = magnitudes.T if transposed else magnitudes
    mask = group_mask(magnitudes, axis, GroupSparsity(*pattern))
    assert mask.shape == magnitudes.shape
    columns, kept = np.moveaxis(magnitudes, axis, 0), np.moveaxis(mask, axis, 0)
    for start in range(0, 12, pattern[1]):
        group, stays = columns[start : start + pattern[1]], kept[start : start + pattern[1]]
        assert (stays.sum(axis=0) == pattern[0]).all()
        for column in range(group.shape[1]):
            assert group[stays[:, column], column].min() >= group[~stays[:, column], column].max()


def test_groups_lie_along_the_inputs_of_kernels_in_every_layer():
    params, report = sparsify(stack_layers(tree()))
    mask = flatten_names(params)["encoder.layers.stacked.up.kernel"].mask
    assert (mask.reshape(2, 2, 4, 12).sum(axis=2) == 2).all()
    assert report.kept_share == 0.5
    plain, again = flatten_parts(sparsify(tree())[0]), flatten_parts(unstack_layers(params))
    assert all(np.array_equal(plain[name], again[name]) for name in plain)


def test_groups_of_an_embedding_lie_along_its_width():
    table = tree()["embeddings"]["word"]["embedding"]
    mask = sparsify({"embedding": table}, everything(GroupSparsity(2, 4)))[0]["embedding"].mask
    assert (mask.reshape(10, 2, 4).sum(axis=2) == 2).all()


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 0.9])
def test_magnitude_prunes_each_leaf_and_each_stacked_layer_at_the_rate(rate):
    rules = default_sparsity_rules(MagnitudeSparsity(rate))
    params, report = sparsify(stack_layers(tree()), rules)
    leaf = flatten_names(params)["encoder.layers.stacked.up.kernel"]
    assert [int(np.count_nonzero(~layer)) for layer in leaf.mask] == [round(rate * 96)] * 2
    plain = flatten_names(sparsify(tree(), rules)[0])
    np.testing.assert_array_equal(leaf.mask[1], plain["encoder.layers.1.up.kernel"].mask)
    assert report.kept_share == pytest.approx(1 - round(rate * 96) / 96)


def test_global_magnitude_takes_more_from_leaves_with_small_weights():
    params = tree()
    params["encoder"]["layers"]["0"]["up"]["kernel"] *= 0.1
    pruned, report = sparsify(params, default_sparsity_rules(MagnitudeSparsity(0.5, scope="global")))
    leaves = flatten_names(pruned)
    shares = [leaves[f"encoder.layers.{index}.up.kernel"].mask.mean() for index in range(2)]
    assert shares[0] < 0.3 < 0.7 < shares[1]
    assert sum(shares) / 2 == pytest.approx(0.5)
    assert report.kept_share == pytest.approx(0.5)


def test_values_under_the_mask_are_zero_and_the_others_untouched():
    params, _ = sparsify(tree())
    leaf, before = (flatten_names(t)["encoder.layers.0.up.kernel"] for t in (params, tree()))
    assert (leaf.values[~leaf.mask] == 0).all()
    np.testing.assert_array_equal(leaf.values[leaf.mask], before[leaf.mask])


def test_the_report_tells_shares_bytes_and_errors():
    params, report = sparsify(tree())
    told = {leaf.name: leaf for leaf in report.leaves}
    kernel = told["encoder.layers.0.up.kernel"]
    assert (kernel.form, kernel.kept_share) == ("sparse", 0.5)
    assert (kernel.bytes_before, kernel.bytes_after) == (384, 384 + 96)
    weights = flatten_names(tree())["encoder.layers.0.up.kernel"]
    lost = np.where(flatten_names(params)["encoder.layers.0.up.kernel"].mask, 0, weights)
    assert kernel.rms_relative_error == pytest.approx(np.linalg.norm(lost) / np.linalg.norm(weights), rel=1e-5)
    assert told["classifier.kernel"].form == "kept"


def test_densify_merges_the_zeros_and_changes_nothing_else():
    params, _ = sparsify(tree())
    dense = flatten_names(densify(params))
    assert list(dense) == list(flatten_names(tree()))
    for name, leaf in flatten_names(params).items():
        expected = np.asarray(leaf.materialize()) if isinstance(leaf, SparseArray) else leaf
        np.testing.assert_array_equal(dense[name], expected)


@pytest.mark.parametrize("optimizer", [optax.adamw(0.05, weight_decay=0.1), optax.sgd(0.1, momentum=0.9)])
def test_masks_survive_training_and_the_loss_falls(optimizer):
    generator = np.random.default_rng(1)
    inputs, target = (jnp.asarray(generator.standard_normal(shape), jnp.float32) for shape in ((32, 8), (8, 12)))
    params, _ = sparsify(
        {"kernel": jnp.asarray(generator.standard_normal((8, 12)), jnp.float32)}, everything(GroupSparsity())
    )
    mask, values = params["kernel"].mask, params["kernel"].values

    def loss(values):
        return jnp.mean((contract(inputs, SparseArray(values, mask)) - inputs @ target) ** 2)

    @jax.jit
    def step(values, state):
        value, gradient = jax.value_and_grad(loss)(values)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, state, values)
        return optax.apply_updates(values, updates), state, value, gradient

    state, losses, start = optimizer.init(values), [], values
    for _ in range(30):
        values, state, value, gradient = step(values, state)
        losses.append(float(value))
        assert (np.asarray(gradient)[~np.asarray(mask)] == 0).all()
    assert losses[-1] < 0.8 * losses[0]
    assert (np.asarray(values)[~np.asarray(mask)] == 0).all()
    assert (np.asarray(values) != np.asarray(start))[np.asarray(mask)].all()


def test_a_pruned_weight_stays_pruned_when_the_rate_rises_or_falls():
    params, _ = sparsify(tree(), default_sparsity_rules(MagnitudeSparsity(0.5)))
    first = flatten_names(params)["encoder.layers.0.up.kernel"].mask
    for rate, share in ((0.75, 0.25), (0.25, 0.5)):
        again, _ = sparsify(params, default_sparsity_rules(MagnitudeSparsity(rate)))
        mask = flatten_names(again)["encoder.layers.0.up.kernel"].mask
        assert not (mask & ~first).any()
        assert mask.mean() == share


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_rates_outside_their_range_are_refused(rate):
    with pytest.raises(ConfigError, match="rate is"):
        MagnitudeSparsity(rate)


@pytest.mark.parametrize("pattern", [(0, 4), (4, 4), (5, 4), (-1, 2), (1, 1)])
def test_patterns_that_are_none_are_refused(pattern):
    with pytest.raises(ConfigError, match=f"{pattern[0]}:{pattern[1]} is no N:M"):
        GroupSparsity(*pattern)


def test_an_axis_that_is_not_divisible_is_named_with_its_size():
    params = {"up": {"kernel": np.ones((6, 4), np.float32)}}
    with pytest.raises(
        ShapeError, match=r"'up.kernel' of shape \(6, 4\) has 6 entries along axis 0.*group size 4 of 2:4"
    ):
        sparsify(params, everything(GroupSparsity(2, 4)))


@pytest.mark.parametrize("spec", [GroupSparsity(), MagnitudeSparsity(0.5), MagnitudeSparsity(0.5, scope="global")])
def test_leaves_that_can_not_be_pruned_are_named(spec):
    with pytest.raises(ShapeError, match=r"'bias' of shape \(4,\)"):
        sparsify({"bias": np.ones(4, np.float32)}, everything(spec))
    with pytest.raises(WeightsError, match="'kernel' has 1 weights that are not finite"):
        sparsify({"kernel": np.array([[np.nan], [1], [1], [1]], np.float32)}, everything(spec))
    quantized, _ = quantize(tree())
    with pytest.raises(RuleError, match=r"'encoder.layers.0.up.kernel' is quantized.*prune before"):
        sparsify(quantized, default_sparsity_rules(spec))


def test_rules_are_total():
    with pytest.raises(RuleError, match="No sparsity rule matches"):
        sparsify(tree(), default_sparsity_rules()[:1])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_values_keep_their_type(dtype):
    params, _ = sparsify({"kernel": jnp.ones((4, 4), dtype)}, everything(GroupSparsity()))
    assert params["kernel"].values.dtype == dtype
