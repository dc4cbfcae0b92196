"""Leaves of few bits, static ranges and float8: what they stand for, products, look-ups, gradients, and parts that do not fit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxbert.core.arrays import LEAF_KINDS, QuantizedArray
from flaxbert.core.contraction import contract, take
from flaxbert.core.low_bit_arrays import (
    FLOAT8,
    ChannelGroupedArray,
    Float8Array,
    ObservedArray,
    PackedArray,
    StaticQuantizedArray,
)
from flaxbert.errors import ShapeError
from flaxbert.transforms.rounding import pack_pairs, pack_planes, round_groups, signed_grid

EXACT = 2e-6
"""Relative to the largest entry: sums of up to 64 float32 products in another order."""

STATIC_TOLERANCE = 2e-2
"""Relative to the largest entry, for 64 inputs in the measured range: a step is 1/255 of it."""


def packed(shape, bits, group_size, axis, seed=0):
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 2**bits, shape)
    groups = list(shape)
    groups[axis] //= group_size
    scale, offset = (jnp.asarray(generator.normal(size=groups), jnp.bfloat16) for _ in range(2))
    leaf = PackedArray(jnp.asarray(pack_planes(codes, axis, bits)), scale, offset)
    leaf.validate()
    spread = lambda part: np.repeat(np.asarray(part, np.float32), group_size, axis=axis)
    return leaf, codes, codes * spread(scale) + spread(offset)


@settings(max_examples=10, deadline=None)
@given(
    st.integers(1, 3), st.sampled_from([16, 24, 32]), st.integers(1, 3), st.integers(1, 5), st.booleans(), st.booleans()
)
def test_packed_codes_come_back_whatever_the_shape(bits, group_size, groups, others, table, stacked):
    length = group_size * groups
    shape = (others, length) if table else ((2, length, others) if stacked else (length, others))
    axis = -1 if table else -2
    leaf, codes, dense = packed(shape, bits, group_size, axis)
    assert (leaf.shape, leaf.axis, leaf.bits, leaf.group_size) == (shape, axis, bits, group_size)
    assert np.array_equal(leaf.codes(), codes)
    assert np.array_equal(jax.jit(lambda leaf: leaf.materialize())(leaf), dense.astype(np.float32))
    assert leaf.size_bytes == codes.size * bits // 8 + 4 * codes.size // group_size
    assert [leaf.logical_axes("planes").count(axis) for axis in range(len(shape))] == [1] * len(shape)


def static(seed=0, zero=-20.0):
    generator = np.random.default_rng(seed)
    weights = generator.normal(size=(64, 6)).astype(np.float32)
    input_scale = (generator.uniform(0.5, 2, (64, 1)) * 0.03).astype(np.float32)
    scaled = weights * input_scale
    scale = np.abs(scaled).max(axis=0, keepdims=True) / 127
    codes = np.rint(scaled / scale).astype(np.int8)
    shift = -zero * scale * codes.sum(axis=0, keepdims=True, dtype=np.int32)
    parts = (codes, scale, input_scale, np.full((1, 1), zero, np.float32), shift.astype(np.float32))
    return StaticQuantizedArray(*map(jnp.asarray, parts)), weights


@pytest.mark.parametrize("zero", [0.0, -20.0, 64.0])
def test_static_products_are_those_of_rounded_inputs_and_weights(zero):
    leaf, weights = static(zero=zero)
    leaf.validate()
    scale = np.asarray(leaf.input_scale)[:, 0]
    inputs = (np.random.default_rng(1).uniform(-0.9, 0.4, (3, 5, 64)) * 127 * scale).astype(np.float32)
    products = np.asarray(contract(jnp.asarray(inputs), leaf))
    codes = np.clip(np.rint(inputs / scale + zero), -128, 127) - zero
    exact = (codes.astype(np.float64) * scale) @ np.asarray(leaf.materialize(), np.float64)
    np.testing.assert_allclose(products, exact, atol=EXACT * np.abs(exact).max() * 10)
    if zero != 64.0:  # a range that these inputs fill
        plain = inputs @ weights
        assert np.abs(products - plain).max() < STATIC_TOLERANCE * np.abs(plain).max()


def test_static_inputs_outside_of_the_range_are_clipped():
    leaf, _ = static(zero=0.0)
    scale = jnp.asarray(leaf.input_scale)[:, 0]
    assert np.array_equal(contract(1000 * scale, leaf), contract(127 * scale, leaf))
    assert np.array_equal(contract(-1000 * scale, leaf), contract(-128 * scale, leaf))


def test_gradients_pass_straight_through_static_rounding():
    leaf, _ = static()
    inputs = jnp.asarray(np.random.default_rng(2).normal(size=(4, 64)), jnp.float32)
    cotangent = jnp.asarray(np.random.default_rng(3).normal(size=(4, 6)), jnp.float32)
    gradient = jax.grad(lambda x: jnp.sum(contract(x, leaf) * cotangent))(inputs)
    expected = cotangent @ leaf.materialize().T
    np.testing.assert_allclose(gradient, expected, atol=EXACT * float(jnp.abs(expected).max()))
    with pytest.raises(ShapeError, match="along its outputs"):
        contract(cotangent, leaf, transposed=True)


def float8(shape, axis):
    weights = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    scale = np.abs(weights).max(axis=axis, keepdims=True) / 448
    return Float8Array(jnp.asarray(weights / scale).astype(FLOAT8), jnp.asarray(scale)), weights


def channel_grouped():
    weights = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
    channel = np.linspace(0.5, 2, 32, dtype=np.float32)[:, None]
    codes, scale, _ = round_groups(weights / channel, -2, 16, signed_grid)
    leaf = ChannelGroupedArray(*map(jnp.asarray, (pack_pairs(codes, -2), scale, channel)))
    return leaf, codes * np.repeat(scale, 16, axis=0) * channel


@pytest.mark.parametrize("kind", ["packed", "float8", "channel_grouped"])
@pytest.mark.parametrize("num_heads", [0, 2])
def test_products_are_those_of_the_dense_matrix(kind, num_heads):
    leaf = {
        "packed": packed((32, 6), 3, 16, -2)[0],
        "float8": float8((32, 6), 0)[0],
        "channel_grouped": channel_grouped()[0],
    }[kind]
    assert leaf.kind == kind
    assert LEAF_KINDS[kind] is type(leaf)
    leaf.validate()
    inputs = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 32)), jnp.float32)
    products = contract(inputs, leaf, jnp.ones(6), num_heads=num_heads)
    expected = contract(inputs, leaf.materialize(), jnp.ones(6), num_heads=num_heads)
    assert np.array_equal(products, expected)


def test_channels_and_float8_stand_for_what_they_say():
    leaf, dense = channel_grouped()
    np.testing.assert_allclose(leaf.materialize(), dense, rtol=1e-6)
    leaf, weights = float8((32, 6), 0)
    assert np.abs(np.asarray(leaf.materialize()) / weights - 1).max() <= 2**-4 * 1.001  # three bits of mantissa


@pytest.mark.parametrize("leaf", [packed((10, 32), 2, 16, -1)[0], float8((10, 32), -1)[0]], ids=lambda leaf: leaf.kind)
def test_rows_are_looked_up_without_writing_out_the_table(leaf):
    indices = jnp.asarray([[3, 0], [9, 3]])
    rows = take(leaf, indices)
    assert np.array_equal(rows, np.asarray(leaf.materialize())[np.asarray(indices)])
    text = str(jax.make_jaxpr(lambda leaf: take(leaf, indices))(leaf))
    assert "f32[10,32]" not in text


def test_groups_along_the_rows_can_not_be_looked_up():
    with pytest.raises(ShapeError, match="along the rows"):
        take(packed((32, 6), 2, 16, -2)[0], jnp.asarray([1]))


@pytest.mark.parametrize(
    ("leaf", "changes", "message"),
    [
        (static()[0], {"codes": jnp.zeros((64, 6), jnp.int16)}, "int8"),
        (static()[0], {"input_scale": jnp.ones((63, 1))}, "leaf@input_scale has shape"),
        (static()[0], {"shift": jnp.ones((6,))}, "leaf@shift has shape"),
        (packed((32, 6), 2, 16, -2)[0], {"planes": jnp.zeros((2, 4, 6), jnp.int8)}, "uint8"),
        (packed((32, 6), 2, 16, -2)[0], {"scale": jnp.zeros((4, 6), jnp.bfloat16)}, "do not belong together"),
        (packed((32, 6), 2, 16, -2)[0], {"planes": jnp.zeros((2, 3, 6), jnp.uint8)}, "do not belong together"),
        (float8((32, 6), 0)[0], {"values": jnp.zeros((32, 6), jnp.int8)}, "float8"),
        (float8((32, 6), 0)[0], {"scale": jnp.zeros((1, 5))}, "does not broadcast"),
        (channel_grouped()[0], {"channel": jnp.ones((31, 1))}, "channel has shape"),
    ],
)
def test_parts_that_do_not_fit_are_refused(leaf, changes, message):
    with pytest.raises(ShapeError, match=message):
        dataclasses.replace(leaf, **changes).validate()


def test_an_observed_leaf_tells_its_inputs_and_changes_nothing():
    heard = []
    inner = QuantizedArray(jnp.ones((4, 3), jnp.int8), jnp.ones((1, 3)))
    leaf = ObservedArray(inner, "dense.kernel", lambda name, inputs: heard.append((name, inputs.shape)))
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 4)), jnp.float32)
    assert np.array_equal(contract(inputs, leaf), contract(inputs, inner))
    assert heard == [("dense.kernel", (2, 5, 4))]
    assert "" not in LEAF_KINDS
    table = ObservedArray(jnp.ones((4, 3)), "table")
    assert take(table, jnp.asarray([1])).shape == (1, 3)
    assert (leaf.shape, table.dtype) == ((4, 3), np.float32)


@pytest.mark.parametrize("transposed", [False, True])
def test_float8_is_multiplied_in_float8_on_gpus_and_written_out_elsewhere(transposed):
    leaf = float8((32, 6), 1 if transposed else 0)[0]
    inputs = jnp.asarray(np.random.default_rng(1).normal(size=(2, 6 if transposed else 32)), jnp.float32)
    function = jax.jit(lambda inputs, leaf: contract(inputs, leaf, transposed=transposed))
    lowered = {
        platform: function.trace(inputs, leaf).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda")
    }
    products = {
        platform: [line for line in text.splitlines() if "dot_general" in line] for platform, text in lowered.items()
    }
    assert ["f8E4M3FN" in line for line in products["cuda"]] == [True]
    assert ["f8E4M3FN" in line for line in products["cpu"]] == [False]
    assert (leaf.product_dtype("gpu"), leaf.product_dtype("cpu"), leaf.product_dtype("tpu")) == (
        "float8_e4m3fn",
        "",
        "",
    )
    gradient = jax.grad(lambda inputs: jnp.sum(function(inputs, leaf)))(inputs)
    dense = leaf.materialize()
    np.testing.assert_allclose(
        gradient, jnp.broadcast_to(jnp.sum(dense, 0 if transposed else 1), inputs.shape), rtol=1e-5, atol=1e-5
    )
