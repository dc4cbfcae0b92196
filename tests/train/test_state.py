import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.config import FreezeRule, MeshConfig
from flaxbert.core.arrays import QuantizedArray, SparseArray
from flaxbert.core.sharding import build_mesh, bytes_per_device
from flaxbert.core.trees import flatten_names, flatten_parts, map_leaves
from flaxbert.errors import MeshError, RuleError
from flaxbert.train.state import NO_BAD_STEP, create_state, join_params, split_parts, state_shardings
from tests.train.tiny_training import leaf_axes, make_params, tiny_optimizer

QUERY = "encoder.layers.0.attention.query.kernel"
KEY = "encoder.layers.1.attention.key.kernel"


def with_typed_leaves():
    def convert(name, leaf):
        if name == QUERY:
            return QuantizedArray(np.ones(leaf.shape, np.int8), np.ones((1, leaf.shape[1]), np.float32))
        if name == KEY:
            return SparseArray(leaf, np.abs(leaf) > 0.01)
        return leaf

    return map_leaves(convert, make_params())


def test_a_new_state_joins_to_the_same_tree():
    params = with_typed_leaves()
    state, kinds = create_state(params, (), tiny_optimizer())
    assert kinds == {QUERY: "quantized", KEY: "sparse"}
    joined, expected = flatten_parts(join_params(state, kinds)), flatten_parts(params)
    assert set(joined) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(np.asarray(joined[name]), array)
        assert joined[name].dtype == array.dtype


def test_a_new_state_starts_from_zero():
    state, _ = create_state(make_params(), (), tiny_optimizer(), loss_scale=1024.0)
    assert (int(state.step), int(state.first_bad_step), int(state.finite_steps)) == (0, NO_BAD_STEP, 0)
    assert (float(state.loss_scale), float(state.learning_rate_factor)) == (1024.0, 1.0)
    assert set(state.optimizer.moments["first"]) == set(state.trainable)


def test_codes_scales_and_masks_are_never_trained():
    state, _ = create_state(with_typed_leaves(), (), tiny_optimizer())
    assert {f"{QUERY}@codes", f"{QUERY}@scale", f"{KEY}@mask"} == set(state.frozen)
    assert f"{KEY}@values" in state.trainable


def test_freeze_rules_are_tried_in_order():
    rules = (
        FreezeRule(r"encoder\.layers\.1\.attention\..*", frozen=False),
        FreezeRule(r"embeddings\..*"),
        FreezeRule(r"encoder\..*"),
    )
    trainable, frozen = split_parts(with_typed_leaves(), rules)
    assert f"{KEY}@values" in trainable
    assert "classifier.kernel" in trainable
    assert "embeddings.word.embedding" in frozen
    assert "encoder.layers.1.feed_forward.up.kernel" in frozen
    assert not any(name.startswith("encoder.layers.0.") for name in trainable)


def test_a_rule_without_leaf_is_named():
    with pytest.raises(RuleError, match=r"train\.freeze rule 'embedings.*matches no leaf"):
        create_state(make_params(), (FreezeRule(r"embedings\..*"),), tiny_optimizer())


def test_nothing_left_to_train_is_an_error():
    with pytest.raises(RuleError, match=r"Nothing is left to train: all \d+ arrays.*'\.\*'"):
        create_state(make_params(), (FreezeRule(r".*"),), tiny_optimizer())


def test_rules_over_numbered_layers_freeze_stacked_layers_whole():
    rules = (FreezeRule(r"encoder\.layers\.[0-1]\.attention\..*"),)
    trainable, frozen = split_parts(make_params(stacked=True), rules)
    assert "encoder.layers.stacked.attention.query.kernel" in frozen
    assert "encoder.layers.stacked.feed_forward.up.kernel" in trainable


def test_freezing_some_of_stacked_layers_says_to_unroll_them():
    with pytest.raises(RuleError, match=r"freezes 'encoder\.layers\.0\..* but not 'encoder\.layers\.1\..*scan_layers"):
        split_parts(make_params(stacked=True), (FreezeRule(r"encoder\.layers\.0\..*"),))


def test_half_precision_parameters_are_trained_in_float32():
    params = map_leaves(lambda _, leaf: jnp.asarray(leaf, jnp.bfloat16), make_params())
    state, _ = create_state(params, (FreezeRule(r"embeddings\..*"),), tiny_optimizer())
    assert {leaf.dtype for leaf in state.trainable.values()} == {jnp.dtype(jnp.float32)}
    assert {leaf.dtype for leaf in state.frozen.values()} == {jnp.dtype(jnp.bfloat16)}


def test_the_arrays_of_the_caller_survive_the_donation_of_the_state():
    params = jax.tree.map(jnp.asarray, make_params())
    state, _ = create_state(params, (), tiny_optimizer())
    jax.block_until_ready(jax.jit(lambda s: jax.tree.map(lambda x: x, s), donate_argnums=0)(state))
    for leaf in flatten_names(params).values():
        assert not leaf.is_deleted()


def test_moments_follow_their_parameter_over_a_mesh():
    params = with_typed_leaves()
    axes, mesh = leaf_axes(params), build_mesh(MeshConfig(fsdp=2, tensor=4))
    state, kinds = create_state(params, (), tiny_optimizer(), leaf_axes=axes, mesh=mesh)
    shardings = state_shardings(state, axes, mesh, kinds)
    for array, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
        assert array.sharding.is_equivalent_to(sharding, array.ndim)
    for name, leaf in state.trainable.items():
        for moments in state.optimizer.moments.values():
            assert moments[name].sharding == leaf.sharding
    assert shardings.trainable["embeddings.word.embedding"].spec == jax.sharding.PartitionSpec("tensor", "fsdp")
    assert shardings.step.is_fully_replicated


def test_a_mesh_splits_the_bytes():
    params = make_params()
    axes, mesh = leaf_axes(params), build_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    whole, _ = create_state(params, (), tiny_optimizer())
    split, _ = create_state(params, (), tiny_optimizer(), leaf_axes=axes, mesh=mesh)
    (total,) = bytes_per_device(whole).values()
    pieces = bytes_per_device(split)
    assert len(pieces) == 8
    # Biases, norms and positions are split less than eight ways.
    assert max(pieces.values()) < 0.2 * total


def test_a_mesh_without_axis_names_is_an_error():
    with pytest.raises(MeshError, match="axis names"):
        create_state(make_params(), (), tiny_optimizer(), mesh=build_mesh(MeshConfig()))
