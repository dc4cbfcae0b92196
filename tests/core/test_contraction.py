"""Products and look-ups with every kind of leaf, their gradients, and the types in which they are computed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxbert.core.arrays import GroupedArray, QuantizedArray, SparseArray, TypedArray
from flaxbert.core.contraction import contract, quantize_tokens, take
from flaxbert.errors import ShapeError
from flaxbert.transforms.rounding import pack_pairs, round_groups, signed_grid
from tests.helpers import slow_unless

FLOAT32_TOLERANCE = 2e-6
"""Relative to the largest entry: float32 rounds at 6e-8, and sums of up to 64 products in another order add a few."""

BFLOAT16_TOLERANCE = 2e-2
"""Relative to the largest entry: each operand rounds at 2**-9 = 0.002, results and cotangents once more."""

FLOAT16_TOLERANCE = 3e-3
"""The same for float16, which rounds at 2**-12."""

INT8_TOLERANCE = 2e-2
"""Relative to the largest entry, for 64 inputs from a normal distribution: a step is 1/127 of the largest magnitude."""

TOLERANCES = {jnp.float32: FLOAT32_TOLERANCE, jnp.bfloat16: BFLOAT16_TOLERANCE, jnp.float16: FLOAT16_TOLERANCE}


def draw(*shapes, seed=0):
    generator = np.random.default_rng(seed)
    return [jnp.asarray(generator.standard_normal(shape), jnp.float32) for shape in shapes]


def group(kernel, axis, size=4):
    codes, scale, _ = round_groups(np.asarray(kernel), axis, size, signed_grid)
    return GroupedArray(jnp.asarray(pack_pairs(codes, axis)), jnp.asarray(scale))


def quantize_columns(kernel, axis):
    scale = jnp.max(jnp.abs(kernel), axis=axis, keepdims=True) / 127
    return QuantizedArray(codes=jnp.round(kernel / scale).astype(jnp.int8), scale=scale)


def assert_near(actual, expected, tolerance):
    actual, expected = np.asarray(actual, np.float32), np.asarray(expected, np.float32)
    assert actual.shape == expected.shape
    np.testing.assert_array_less(np.abs(actual - expected), tolerance * max(np.abs(expected).max(), 1e-6))


SHAPES = [((5, 16), 8), ((2, 7, 24), 10), ((2, 3, 4, 8), 6), ((12,), 5)]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("inputs_shape", "width"), SHAPES)
def test_products_and_gradients_equal_a_plain_float32_product(inputs_shape, width, transposed, dtype):
    inner = inputs_shape[-1]
    inputs, kernel, weights = draw(
        inputs_shape, (width, inner) if transposed else (inner, width), (*inputs_shape[:-1], width)
    )

    def loss(inputs, kernel):
        products = contract(inputs, kernel, compute_dtype=dtype, transposed=transposed)
        assert products.dtype == jnp.float32
        return jnp.sum(jnp.sin(products) * weights), products

    def reference(inputs, kernel):
        products = inputs @ (kernel.T if transposed else kernel)
        return jnp.sum(jnp.sin(products) * weights), products

    def run(function):
        return jax.jit(jax.value_and_grad(function, argnums=(0, 1), has_aux=True))(inputs, kernel)

    (_, products), gradients = run(loss)
    (_, expected), expected_gradients = run(reference)
    tolerance = TOLERANCES[dtype]
    assert_near(products, expected, tolerance)
    for gradient, expected_gradient, argument in zip(gradients, expected_gradients, (inputs, kernel), strict=True):
        assert gradient.dtype == argument.dtype
        assert_near(gradient, expected_gradient, 2 * tolerance)  # sin' multiplies the error of the products in


def test_gradient_of_low_precision_inputs_has_their_type():
    inputs, kernel = draw((4, 8), (8, 3))
    gradient = jax.jit(jax.grad(lambda x: contract(x, kernel, compute_dtype=jnp.bfloat16).sum()))(
        inputs.astype(jnp.bfloat16)
    )
    assert gradient.dtype == jnp.bfloat16


def dots(function, *arguments):
    """Returns the operand types of every dot of a function, as the compiler gets it."""
    text = jax.jit(function).lower(*arguments).as_text()
    return re.findall(r"dot_general.*: \(tensor<(?:\d+x)*(\w+)>, tensor<(?:\d+x)*(\w+)>\)", text)


def test_every_dot_of_a_bfloat16_product_and_its_gradients_runs_in_bfloat16():
    inputs, kernel = draw((2, 4, 8), (8, 6))
    step = jax.value_and_grad(lambda x, k: contract(x, k, compute_dtype=jnp.bfloat16).sum(), argnums=(0, 1))
    found = dots(step, inputs, kernel)
    assert len(found) >= 3
    assert set(found) == {("bf16", "bf16")}


@pytest.mark.parametrize("transposed", [False, True])
def test_products_with_codes_run_in_int8(transposed):
    inputs, kernel = draw((2, 4, 8), (6, 8) if transposed else (8, 6))
    leaf = quantize_columns(kernel, 1 if transposed else 0)
    multiply = lambda x, leaf: contract(x, leaf, transposed=transposed)
    found = dots(multiply, inputs, leaf)
    assert found
    assert set(found) <= {("i8", "i8"), ("ui8", "i8")}  # the second where x86 has byte products of mixed signs


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("transposed", [False, True])
def test_int8_products_are_near_the_float_product(transposed, dtype):
    inputs, kernel = draw((3, 9, 64), (32, 64) if transposed else (64, 32))
    leaf = quantize_columns(kernel, 1 if transposed else 0)
    products = jax.jit(lambda x: contract(x, leaf, compute_dtype=dtype, transposed=transposed))(inputs.astype(dtype))
    assert products.dtype == jnp.float32
    assert_near(products, inputs @ (kernel.T if transposed else kernel), INT8_TOLERANCE)


def test_int8_sums_do_not_overflow_at_the_widest_layer():
    inputs, kernel = jnp.ones((1, 4096)), jnp.ones((4096, 1))
    assert float(contract(inputs, quantize_columns(kernel, 0))[0, 0]) == pytest.approx(4096, rel=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
def test_gradient_through_a_quantized_kernel_is_that_of_its_dense_form(transposed):
    inputs, kernel, weights = draw((2, 5, 16), (12, 16) if transposed else (16, 12), (2, 5, 12))
    leaf = quantize_columns(kernel, 1 if transposed else 0)

    def loss(inputs, scale):
        return jnp.sum(contract(inputs, QuantizedArray(leaf.codes, scale), transposed=transposed) * weights)

    def reference(inputs, scale):
        dense = leaf.codes.astype(jnp.float32) * scale
        return jnp.sum((inputs @ (dense.T if transposed else dense)) * weights)

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(inputs, leaf.scale)
    expected = jax.jit(jax.grad(reference, argnums=(0, 1)))(inputs, leaf.scale)
    assert_near(gradients[0], expected[0], FLOAT32_TOLERANCE)
    assert_near(gradients[1], expected[1], INT8_TOLERANCE)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_scale_that_varies_along_the_contracted_axis_is_refused(transposed):
    inputs, kernel = draw((2, 6), (6, 6))
    leaf = quantize_columns(kernel, 0 if transposed else 1)
    with pytest.raises(ShapeError, match=r"scales \((6, 1|1, 6)\) can not be contracted along axis"):
        contract(inputs, leaf, transposed=transposed)


def test_a_zero_token_gives_zero_and_a_nan_token_stays_nan():
    (kernel,) = draw((8, 4))
    inputs = jnp.ones((3, 8)).at[0].set(0.0).at[1, 2].set(jnp.nan)
    products = np.asarray(contract(inputs, quantize_columns(kernel, 0)))
    assert (products[0] == 0).all()
    assert np.isnan(products[1]).all()
    assert np.isfinite(products[2]).all()


def test_an_infinite_token_does_not_turn_finite():
    (kernel,) = draw((8, 4))
    products = contract(jnp.ones((1, 8)).at[0, 0].set(jnp.inf), quantize_columns(kernel, 0))
    assert not np.isfinite(np.asarray(products)).any()


MAGNITUDES = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)


@settings(max_examples=50, deadline=None)
@given(st.lists(MAGNITUDES, min_size=6, max_size=6))
def test_token_codes_are_within_half_a_step(values):
    inputs = jnp.asarray(values, jnp.float32)[None]
    codes, scale = quantize_tokens(inputs)
    assert codes.dtype == jnp.int8
    assert np.abs(np.asarray(codes, np.int32)).max() <= 127
    error = np.abs(np.asarray(inputs, np.float64) - np.asarray(codes, np.float64) * np.asarray(scale, np.float64))
    assert (error <= np.asarray(scale, np.float64) / 2 * (1 + 1e-5)).all()


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("transposed", [False, True])
def test_sparse_products_equal_those_of_the_masked_matrix_and_masked_gradients_are_zero(transposed, dtype):
    inputs, kernel = draw((2, 5, 16), (12, 16) if transposed else (16, 12))
    mask = jnp.abs(kernel) > 0.6
    loss = lambda values: contract(inputs, SparseArray(values, mask), compute_dtype=dtype, transposed=transposed)
    dense = jnp.where(mask, kernel, 0.0)
    assert_near(loss(kernel), inputs @ (dense.T if transposed else dense), TOLERANCES[dtype])
    gradient = jax.jit(jax.grad(lambda values: jnp.sum(jnp.sin(loss(values)))))(kernel)
    assert (np.asarray(gradient)[~np.asarray(mask)] == 0).all()
    assert (np.asarray(gradient)[np.asarray(mask)] != 0).all()


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("transposed", [False, True])
def test_grouped_products_and_their_gradients_equal_those_of_the_written_out_matrix(transposed, dtype):
    inputs, kernel = draw((3, 5, 16), (7, 16) if transposed else (16, 7))
    leaf = group(kernel, -1 if transposed else -2)

    def loss(inputs, leaf):
        return jnp.sum(jnp.sin(contract(inputs, leaf, compute_dtype=dtype, transposed=transposed)))

    dense = leaf.materialize()
    np.testing.assert_array_equal(
        contract(inputs, leaf, compute_dtype=dtype, transposed=transposed),
        contract(inputs, dense, compute_dtype=dtype, transposed=transposed),
    )
    np.testing.assert_array_equal(jax.grad(loss)(inputs, leaf), jax.grad(loss)(inputs, dense))
    assert_near(dense, kernel, 0.12)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: dtype.__name__)
def test_look_ups_give_the_rows_of_every_kind_of_table(dtype):
    (table,) = draw((11, 8))
    indices = jnp.asarray([[0, 10, 3], [3, 3, 1]], jnp.int32)
    mask = jnp.abs(table) > 0.5
    for leaf, dense, tolerance in (
        (table, table, TOLERANCES[dtype]),
        (SparseArray(table, mask), jnp.where(mask, table, 0.0), TOLERANCES[dtype]),
        (quantize_columns(table, 1), table, max(INT8_TOLERANCE, TOLERANCES[dtype])),
        (group(table, -1), group(table, -1).materialize(), TOLERANCES[dtype]),
    ):
        rows = take(leaf, indices, compute_dtype=dtype)
        assert (rows.shape, rows.dtype) == ((2, 3, 8), dtype)
        assert_near(rows, dense[indices], tolerance)


def test_gradient_of_a_look_up_adds_up_repeated_rows():
    (table,) = draw((5, 3))
    gradient = jax.jit(jax.grad(lambda table: take(table, jnp.asarray([1, 1, 4], jnp.int32)).sum()))(table)
    np.testing.assert_array_equal(gradient[:, 0], [0, 2, 0, 0, 1])


@pytest.mark.parametrize("kind", ["plain", "quantized", "grouped", "sparse"])
def test_a_number_past_the_table_gives_nan_and_never_another_row(kind):
    (table,) = draw((5, 8))
    leaf = {
        "plain": table,
        "quantized": quantize_columns(table, 1),
        "grouped": group(table, -1),
        "sparse": SparseArray(table, jnp.ones(table.shape, bool)),
    }[kind]
    rows = np.asarray(take(leaf, jnp.asarray([4, 5, 99], jnp.int32)))
    assert np.isfinite(rows[0]).all()
    assert np.isnan(rows[1:]).all()


def test_a_table_with_one_scale_per_column_can_not_be_looked_up():
    (table,) = draw((5, 3))
    with pytest.raises(ShapeError, match="one scale per row"):
        take(quantize_columns(table, 0), jnp.asarray([0], jnp.int32))
    with pytest.raises(ShapeError, match="its groups lie along the rows"):
        take(group(draw((8, 3))[0], -2), jnp.asarray([0], jnp.int32))


def test_unknown_leaves_are_refused():
    class Unknown(TypedArray, kind="unknown-in-a-test", parts=("codes",), computes_in=""):
        codes = jnp.zeros((2, 2))

    try:
        with pytest.raises(TypeError, match="Unknown"):
            contract(jnp.ones((1, 2)), Unknown())
        with pytest.raises(TypeError, match="Unknown"):
            take(Unknown(), jnp.asarray([0], jnp.int32))
    finally:
        from flaxbert.core.arrays import LEAF_KINDS

        del LEAF_KINDS["unknown-in-a-test"]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("num_heads", slow_unless((1).__ne__, [0, 1, 3]))
@pytest.mark.parametrize("kind", ["plain", "quantized", "sparse"])
def test_a_bias_and_heads_are_added_to_every_kind_of_product_with_their_gradients(kind, num_heads, dtype):
    inputs, kernel, bias, weights = draw((2, 5, 16), (16, 12), (12,), (2, 5, 12))
    mask = jnp.abs(kernel) > 0.3
    leaf = {"plain": kernel, "quantized": quantize_columns(kernel, 0), "sparse": SparseArray(kernel, mask)}[kind]
    dense = jnp.asarray(leaf.materialize()) if isinstance(leaf, TypedArray) else leaf

    def split(products):
        return products if not num_heads else jnp.swapaxes(products.reshape(2, 5, num_heads, -1), 1, 2)

    def loss(inputs, bias):
        products = contract(inputs, leaf, bias, compute_dtype=dtype, num_heads=num_heads)
        return jnp.sum(products * split(weights)), products

    def reference(inputs, bias):
        products = split(inputs @ dense + bias)
        return jnp.sum(products * split(weights)), products

    run = lambda function: jax.jit(jax.value_and_grad(function, argnums=(0, 1), has_aux=True))(inputs, bias)
    (_, products), gradients = run(loss)
    (_, expected), expected_gradients = run(reference)
    tolerance = TOLERANCES[dtype]
    assert_near(products, expected, max(tolerance, INT8_TOLERANCE) if kind == "quantized" else tolerance)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert_near(gradient, wanted, tolerance)
