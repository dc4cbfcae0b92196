"""Named leaves: names, parts, sizes and stacking, and that each map has its inverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxbert.core.arrays import QuantizedArray, SparseArray
from flaxbert.core.trees import (
    count_parameters,
    flatten_names,
    flatten_parts,
    is_stacked,
    leaf_kinds,
    leaf_names,
    map_leaves,
    same_structure,
    size_bytes,
    stack_layers,
    unflatten_names,
    unflatten_parts,
    unstack_layers,
)
from flaxbert.errors import ShapeError

KEYS = st.text("abcdef_0123456789", min_size=1, max_size=4)
TREES = st.recursive(
    st.integers(), lambda children: st.dictionaries(KEYS, children, min_size=1, max_size=4), max_leaves=12
).filter(lambda tree: isinstance(tree, dict))


def quantized(seed):
    codes = np.random.default_rng(seed).integers(-127, 128, (4, 3)).astype(np.int8)
    return QuantizedArray(codes=codes, scale=np.full((1, 3), 0.5 + seed, np.float32))


def sparse(seed):
    values = np.random.default_rng(seed).standard_normal((4, 3)).astype(np.float32)
    return SparseArray(values=values, mask=values > 0)


def layered(num_layers=3, make=quantized):
    layers = {
        str(index): {"up": {"kernel": make(index), "bias": np.full(3, index, np.float32)}}
        for index in range(num_layers)
    }
    return {"embeddings": {"word": np.ones((5, 4), np.float32)}, "encoder": {"layers": layers}}


@settings(max_examples=50, deadline=None)
@given(TREES)
def test_names_and_tree_are_inverse(tree):
    assert unflatten_names(flatten_names(tree)) == tree
    assert leaf_names(tree) == list(flatten_names(tree))


@pytest.mark.parametrize("make", [quantized, sparse])
def test_parts_and_tree_are_inverse(make):
    tree = layered(make=make)
    parts = flatten_parts(tree)
    first = "encoder.layers.0.up.kernel"
    assert {name for name in parts if name.startswith(first)} == {f"{first}@{part}" for part in make(0).parts}
    again = unflatten_parts(parts, leaf_kinds(tree))
    assert same_structure(again, tree)
    assert all(np.array_equal(parts[name], array) for name, array in flatten_parts(again).items())


def test_kinds_name_typed_leaves_only():
    assert leaf_kinds(layered(2)) == {f"encoder.layers.{i}.up.kernel": "quantized" for i in range(2)}


def test_a_part_without_kind_is_named():
    with pytest.raises(ShapeError, match="'a.kernel@codes'"):
        unflatten_parts({"a.kernel@codes": np.ones(2)}, {})


def test_a_leaf_without_all_its_parts_is_named():
    with pytest.raises(ShapeError, match="quantized leaf has the parts"):
        unflatten_parts({"a.kernel@codes": np.ones(2)}, {"a.kernel": "quantized"})


def test_map_leaves_sees_typed_leaves_whole():
    seen = []
    map_leaves(lambda name, leaf: seen.append((name, type(leaf).__name__)), layered(1))
    assert ("encoder.layers.0.up.kernel", "QuantizedArray") in seen
    assert len(seen) == 3


def test_sizes_count_stored_bytes_and_logical_parameters():
    tree = layered(2)
    assert count_parameters(tree) == 20 + 2 * (12 + 3)
    assert size_bytes(tree) == 80 + 2 * (12 + 12 + 12)


@pytest.mark.parametrize(
    "make", [quantized, sparse, lambda seed: sparse(seed).values], ids=["quantized", "sparse", "plain"]
)
@pytest.mark.parametrize("num_layers", [1, 3, 11])
def test_stacking_and_unstacking_are_inverse(num_layers, make):
    tree = layered(num_layers, make)
    stacked = stack_layers(tree)
    assert is_stacked(stacked)
    assert not is_stacked(tree)
    assert flatten_names(stacked)["encoder.layers.stacked.up.kernel"].shape == (num_layers, 4, 3)
    np.testing.assert_array_equal(flatten_names(stacked)["encoder.layers.stacked.up.bias"][:, 0], np.arange(num_layers))
    again = unstack_layers(stacked)
    assert same_structure(again, tree)
    before = flatten_parts(tree)
    assert all(np.array_equal(before[name], array) for name, array in flatten_parts(again).items())


@pytest.mark.parametrize("make", [quantized, sparse])
def test_shape_structs_stack_like_arrays(make):
    tree = layered(3, make)
    structs = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree))
    assert same_structure(stack_layers(structs), stack_layers(tree))
    assert same_structure(unstack_layers(stack_layers(structs)), tree)


def test_stacking_works_inside_jit():
    tree = jax.tree.map(jnp.asarray, layered(3))
    assert same_structure(jax.jit(stack_layers)(tree), stack_layers(tree))


@pytest.mark.parametrize(
    "other",
    [np.ones((4, 3), np.float32), np.ones((4, 2), np.float32), np.ones((4, 3), np.int32), sparse(0), None],
    ids=["kind", "shape", "dtype", "other kind", "missing"],
)
def test_layers_that_differ_can_not_be_stacked_and_the_leaf_is_named(other):
    tree = layered(2, quantized)
    if other is None:
        del tree["encoder"]["layers"]["1"]["up"]["kernel"]
    else:
        tree["encoder"]["layers"]["1"]["up"]["kernel"] = other
    with pytest.raises(ShapeError, match=r"'encoder\.layers\.\*\.up\.kernel' differs.*scan_layers: false"):
        stack_layers(tree)


def test_trees_without_layers_stay_as_they_are():
    tree = {"pooler": {"kernel": np.ones(2)}}
    assert stack_layers(tree) == tree
    assert unstack_layers(tree) == tree


def test_same_structure_sees_names_shapes_types_and_kinds():
    tree = layered(1)
    assert same_structure(tree, layered(1))
    assert not same_structure(tree, layered(2))
    assert not same_structure(tree, layered(1, sparse))
    for changed in (np.ones((5, 5), np.float32), np.ones((5, 4), np.int32)):
        assert not same_structure(tree, {**tree, "embeddings": {"word": changed}})
