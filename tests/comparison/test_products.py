"""Products are counted where they happen, and every kind of leaf multiplies in the type that it says."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.comparison.products import count_products, low_precision_share
from flaxbert.core.arrays import LEAF_KINDS, GroupedArray, QuantizedArray, SparseArray
from flaxbert.core.contraction import contract
from flaxbert.core.low_bit_arrays import (
    FLOAT8,
    ChannelGroupedArray,
    Float8Array,
    PackedArray,
    StaticQuantizedArray,
)
from flaxbert.core.movement_array import MovementArray

WEIGHTS = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)


def ones(*shape):
    return jnp.ones(shape, jnp.float32)


LEAVES = {
    "quantized": lambda: QuantizedArray(jnp.asarray(WEIGHTS * 30, jnp.int8), jnp.ones((1, 8), jnp.float32)),
    "grouped": lambda: GroupedArray(jnp.asarray(WEIGHTS[:8] * 30, jnp.int8), jnp.ones((4, 8), jnp.float32)),
    "sparse": lambda: SparseArray(jnp.asarray(WEIGHTS), jnp.asarray(WEIGHTS > 0)),
    "static": lambda: StaticQuantizedArray(
        jnp.asarray(WEIGHTS * 30, jnp.int8), ones(1, 8), ones(16, 1), ones(1, 1), ones(1, 8)
    ),
    "packed": lambda: PackedArray(jnp.zeros((2, 2, 8), jnp.uint8), *[ones(1, 8).astype(jnp.bfloat16)] * 2),
    "channel_grouped": lambda: ChannelGroupedArray(jnp.asarray(WEIGHTS[:8] * 30, jnp.int8), ones(4, 8), ones(16, 1)),
    "movement": lambda: MovementArray(jnp.asarray(WEIGHTS), ones(4, 2), jnp.arange(8).reshape(4, 2) > 3),
    "float8": lambda: Float8Array(jnp.asarray(WEIGHTS, FLOAT8), ones(1, 8)),
}
"""A kernel of 16 inputs and 8 outputs in every kind; a new kind needs a line here."""

KINDS = sorted(kind for kind, leaf in LEAF_KINDS.items() if leaf.__module__.startswith("flaxbert."))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_a_kind_multiplies_in_the_type_that_it_says(kind, compute):
    leaf = LEAVES[kind]()
    leaf.validate()
    assert leaf.shape == (16, 8)
    found = count_products(lambda x, w: contract(x, w, compute_dtype=compute), jnp.ones((2, 3, 16)), leaf)
    expected = type(leaf).product_dtype(jax.default_backend()) or compute
    assert next(iter(found)) == expected
    assert found[expected] >= 2 * 3 * 16 * 8
    assert low_precision_share(found, compute) == (0.0 if expected == compute else 1.0)


def test_a_kind_must_say_what_it_computes_in():
    from flaxbert.core.arrays import TypedArray

    assert inspect.signature(TypedArray.__init_subclass__).parameters["computes_in"].default is inspect.Parameter.empty
    with pytest.raises(TypeError, match="computes_in"):
        type("Silent", (TypedArray,), {}, kind="silent-in-a-test", parts=("codes",))


def test_loops_count_as_often_as_they_run_and_branches_once():
    def repeated(x):
        return jax.lax.scan(lambda carry, _: (carry @ carry, None), x, None, length=5)[0]

    def branched(x):
        return jax.lax.cond(x[0, 0] > 0, lambda y: y @ y, lambda y: y @ y @ y, x)

    square = jnp.ones((4, 4))
    assert count_products(repeated, square) == {"float32": 5 * 64}
    assert count_products(jax.jit(branched), square) == {"float32": 128}


def test_convolutions_count_by_window_and_channel():
    def convolved(x, w):
        return jax.lax.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))

    assert count_products(convolved, jnp.ones((2, 7, 3)), jnp.ones((5, 3, 4))) == {"float32": 2 * 7 * 4 * 5 * 3}


def test_shares_of_nothing_and_of_both():
    assert low_precision_share({}, "float32") == 0.0
    assert low_precision_share({"int8": 3.0, "float32": 1.0}, "float32") == 0.75
    assert low_precision_share({"bfloat16": 3.0, "float32": 1.0}, "bfloat16") == 0.0
