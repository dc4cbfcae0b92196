"""Names, schema and comparison of the arrays that a version stores."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxbert.core.arrays import QuantizedArray
from flaxbert.errors import CheckpointError
from flaxbert.train.stored_leaves import (
    compare_leaves,
    describe_leaves,
    leaves_bytes,
    named_leaves,
    storable_leaves,
    typed_kinds,
)


def test_names_cover_every_leaf_in_flattening_order():
    params = {"b.kernel": np.ones((2, 3), np.float32), "a.bias": np.ones(3, np.float32)}
    tree = {
        "optimizer": jax.eval_shape(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)).init, params),
        "typed": QuantizedArray(np.ones((4, 2), np.int8), np.ones((1, 2), np.float32)),
        "list": [1, (2.0, None)],
    }
    leaves = named_leaves(tree)
    assert all(left is right for left, right in zip(leaves.values(), jax.tree.leaves(tree), strict=True))
    assert {"typed@codes", "typed@scale", "list.0", "list.1.0", "optimizer.1.0.mu.b.kernel"} <= set(leaves)
    assert typed_kinds(tree) == {"typed": "quantized"}


def test_a_single_array_has_a_name_too():
    assert list(named_leaves(np.ones(2))) == ["value"]


def test_bytes_count_small_types_packed():
    leaves = {"int4": jax.ShapeDtypeStruct((3, 3), jnp.int4), "f": np.ones((2, 2), np.float32), "b": np.ones(5, bool)}
    assert leaves_bytes(leaves) == 5 + 16 + 5


def test_schema_is_the_same_for_arrays_numbers_and_shape_structs():
    arrays = {"a": jnp.ones((2, 3), jnp.bfloat16), "n": 3, "r": 0.5}
    structs = {"a": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16), "n": 7, "r": 0.0}
    assert describe_leaves(arrays) == describe_leaves(structs)
    assert describe_leaves(arrays)["a"] == {"shape": [2, 3], "dtype": "bfloat16"}
    assert set(storable_leaves(arrays)) == {"a", "n", "r"}


def test_same_schema_passes_and_kinds_matter_only_when_given():
    leaves = {"a@codes": np.ones((2, 2), np.int8)}
    compare_leaves(describe_leaves(leaves), {"a": "quantized"}, leaves, None, "here")
    compare_leaves(describe_leaves(leaves), {"a": "quantized"}, leaves, {"a": "quantized"}, "here")
    with pytest.raises(CheckpointError, match=r"other kind of leaf: a \(checkpoint quantized, model plain\)"):
        compare_leaves(describe_leaves(leaves), {"a": "quantized"}, leaves, {}, "here")


def test_long_lists_of_differences_are_cut_and_counted():
    leaves = {f"layer.{index}": np.ones(1) for index in range(30)}
    with pytest.raises(CheckpointError, match=r"only in the model: layer\.0, .*layer\.7 and 22 more"):
        compare_leaves({}, {}, leaves, None, "here")


def test_width_of_integer_codes_matters():
    stored = describe_leaves({"codes": jax.ShapeDtypeStruct((4, 4), jnp.int4)})
    with pytest.raises(CheckpointError, match=r"codes \(checkpoint int4\[4,4\], model int8\[4,4\]\)"):
        compare_leaves(stored, {}, {"codes": jax.ShapeDtypeStruct((4, 4), jnp.int8)}, None, "here")
