"""Typed leaves: logical view, bytes, checks, and their way through JAX's transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.core.arrays import (
    LEAF_KINDS,
    GroupedArray,
    QuantizedArray,
    SparseArray,
    TypedArray,
    array_bytes,
    build_typed,
    is_typed,
    materialize,
)
from flaxbert.errors import ShapeError
from flaxbert.transforms.rounding import pack_pairs


def quantized(rows: int = 6, columns: int = 4) -> QuantizedArray:
    codes = np.arange(rows * columns, dtype=np.int8).reshape(rows, columns) - 10
    return QuantizedArray(codes=jnp.asarray(codes), scale=jnp.linspace(0.5, 2.0, columns)[None])


def sparse(rows: int = 6, columns: int = 4, dtype=jnp.float32) -> SparseArray:
    values = jnp.arange(1, rows * columns + 1, dtype=dtype).reshape(rows, columns)
    return SparseArray(values=values, mask=values.astype(jnp.int32) % 2 == 0)


def test_a_quantized_leaf_looks_like_the_matrix_it_stands_for():
    leaf = quantized()
    assert (leaf.shape, leaf.dtype, leaf.ndim, leaf.size) == ((6, 4), np.float32, 2, 24)
    np.testing.assert_array_equal(leaf.materialize(), np.asarray(leaf.codes, np.float32) * np.asarray(leaf.scale))


@pytest.mark.parametrize(
    ("axis", "shape"), [(-2, (16, 6)), (-1, (6, 16)), (-2, (3, 16, 6)), (-1, (3, 6, 16)), (-2, (16, 16))]
)
def test_a_grouped_leaf_looks_like_the_matrix_it_stands_for(axis, shape):
    codes = np.random.default_rng(0).integers(-8, 8, shape).astype(np.int8)
    scales = list(shape)
    scales[axis] = 4
    scale = np.random.default_rng(1).random(scales).astype(np.float32)
    leaf = GroupedArray(jnp.asarray(pack_pairs(codes, axis)), jnp.asarray(scale))
    leaf.validate("x")
    assert (leaf.axis, leaf.shape, leaf.group_size, leaf.dtype) == (axis, shape, 4, np.float32)
    np.testing.assert_array_equal(leaf.codes(), codes)
    np.testing.assert_array_equal(leaf.materialize(), codes * np.repeat(scale, 4, axis=axis))
    assert leaf.size_bytes == codes.size // 2 + scale.size * 4


def test_a_sparse_leaf_hides_what_its_mask_hides_even_if_the_value_is_nan():
    leaf = sparse()
    leaf = SparseArray(values=leaf.values.at[0, 0].set(jnp.nan), mask=leaf.mask)
    assert not leaf.mask[0, 0]
    assert np.asarray(leaf.materialize())[0].tolist() == [0.0, 2.0, 0.0, 4.0]


def test_a_sparse_leaf_has_the_type_of_its_values():
    assert sparse(dtype=jnp.bfloat16).dtype == jnp.bfloat16
    assert sparse(dtype=jnp.bfloat16).materialize().dtype == jnp.bfloat16


def test_bytes_count_all_parts():
    assert quantized().size_bytes == 24 + 4 * 4
    assert sparse().size_bytes == 24 * 4 + 24


@pytest.mark.parametrize(
    ("dtype", "size", "expected"),
    [(jnp.float32, 3, 12), (jnp.bfloat16, 3, 6), (jnp.int8, 3, 3), (jnp.int4, 3, 2), (jnp.int4, 4, 2), (bool, 5, 5)],
)
def test_array_bytes_counts_small_integers_packed(dtype, size, expected):
    assert array_bytes(jax.ShapeDtypeStruct((size,), dtype)) == expected


@pytest.mark.parametrize("leaf", [quantized(), sparse()], ids=lambda leaf: leaf.kind)
def test_parts_and_kind_rebuild_the_leaf(leaf):
    again = build_typed(leaf.kind, leaf.stored_parts())
    assert type(again) is type(leaf)
    np.testing.assert_array_equal(again.materialize(), leaf.materialize())


def test_every_kind_is_registered_under_its_name():
    assert set(LEAF_KINDS) >= {"quantized", "sparse"}
    assert all(issubclass(leaf, TypedArray) and leaf.kind == kind for kind, leaf in LEAF_KINDS.items())
    assert all(set(leaf.__dataclass_fields__) == set(leaf.parts) for leaf in LEAF_KINDS.values())


def test_an_unknown_kind_names_the_known_ones():
    with pytest.raises(ShapeError, match=r"'ternary'.*quantized.*sparse"):
        build_typed("ternary", {})


def test_missing_parts_are_named():
    with pytest.raises(ShapeError, match=r"codes.*scale.*not \('codes',\)"):
        build_typed("quantized", {"codes": jnp.zeros((2, 2), jnp.int8)})


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (QuantizedArray(jnp.zeros((2, 3)), jnp.ones((1, 3))), "x@codes has dtype float32"),
        (QuantizedArray(jnp.zeros((2, 3), jnp.uint8), jnp.ones((1, 3))), "x@codes has dtype uint8"),
        (QuantizedArray(jnp.zeros((2, 3), jnp.int8), jnp.ones((1, 2))), "x@scale has shape"),
        (QuantizedArray(jnp.zeros((2, 3), jnp.int8), jnp.ones(3)), "x@scale has shape"),
        (GroupedArray(jnp.zeros((4, 3), jnp.uint8), jnp.ones((2, 3))), "x@packed has dtype uint8"),
        (GroupedArray(jnp.zeros((4, 3), jnp.int8), jnp.ones((4, 3))), "x@scale has shape"),
        (GroupedArray(jnp.zeros((4, 3), jnp.int8), jnp.ones((3, 3))), "x@scale has shape"),
        (GroupedArray(jnp.zeros((4, 3), jnp.int8), jnp.ones((2, 2))), "x@scale has shape"),
        (GroupedArray(jnp.zeros((4, 3), jnp.int8), jnp.ones(3)), "x@scale has shape"),
        (SparseArray(jnp.zeros((2, 3)), jnp.ones((3, 2), bool)), "x@mask has shape"),
        (SparseArray(jnp.zeros((2, 3)), jnp.ones((2, 3))), "x@mask has dtype float32"),
    ],
)
def test_parts_that_do_not_fit_are_named(leaf, message):
    with pytest.raises(ShapeError, match=message):
        leaf.validate("x")


def test_sound_leaves_validate():
    quantized().validate()
    sparse().validate()
    assert is_typed(quantized())
    assert not is_typed(jnp.ones(3))


def test_materialize_leaves_plain_arrays_alone():
    array = jnp.ones((2, 2))
    assert materialize(array) is array


@pytest.mark.parametrize("leaf", [quantized(), sparse()], ids=lambda leaf: leaf.kind)
def test_leaves_go_through_jit_as_arguments_and_results(leaf):
    again = jax.jit(lambda leaf: leaf)(leaf)
    assert type(again) is type(leaf)
    assert again.shape == leaf.shape
    np.testing.assert_array_equal(again.materialize(), leaf.materialize())


@pytest.mark.parametrize("leaf", [quantized(), sparse()], ids=lambda leaf: leaf.kind)
def test_scan_sees_one_layer_of_a_stacked_leaf_with_its_own_shape(leaf):
    stacked = jax.tree.map(lambda array: jnp.stack([array, array, array]), leaf)
    shapes = []

    def body(carry, layer):
        shapes.append((layer.shape, layer.ndim))
        return carry + layer.materialize().sum(), None

    total, _ = jax.lax.scan(body, jnp.float32(0.0), stacked)
    assert stacked.shape == (3, 6, 4)
    assert shapes[0] == ((6, 4), 2)
    assert float(total) == pytest.approx(3 * float(leaf.materialize().sum()), rel=1e-6)


@pytest.mark.parametrize("leaf", [quantized(), sparse()], ids=lambda leaf: leaf.kind)
def test_leaves_hold_whatever_tree_map_puts_into_them(leaf):
    structs = jax.eval_shape(lambda leaf: leaf, leaf)
    assert (structs.shape, structs.size_bytes) == (leaf.shape, leaf.size_bytes)
    empty = jax.tree.map(lambda _: None, leaf)
    assert all(part is None for part in empty.stored_parts().values())


def test_a_base_leaf_does_not_pretend_to_materialize():
    with pytest.raises(TypeError, match="TypedArray"):
        TypedArray().materialize()
