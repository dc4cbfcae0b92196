"""Products of int8 by int8 in the form that each backend computes fastest.

The byte instructions of x86 (VNNI) multiply unsigned by signed. XLA:CPU uses them for a dot of uint8 by int8, which is 2.6
times as fast as one of int8 by int8 where the machine has AVX512-VNNI. AMX multiplies signed by signed as fast, so that the shift and
the sums that unsigned codes need would only cost (a third to half of the speed of a dense layer). On other processors there is no fast
kernel for mixed operands, so int8 by int8 stays. ``jax.lax.dot_general`` converts mixed operands to int32 first, which
is ten times slower, so the mixed dot is a primitive here.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import batching, mlir
from jaxtyping import Array, Int

from flaxbert.core.processor import processor_features

NUM_ONES_ROWS = 8
"""Rows of ones that sum the codes: a dot with one row goes to a slow matrix-vector path on CPU."""

ZERO_POINT = 128
"""What is added to an int8 code to make it unsigned."""

_MIXED_INSTRUCTION, _SIGNED_INSTRUCTION = "avx512_vnni", "amx_int8"

_mixed_dot = core.Primitive("flaxbert_uint8_int8_dot")


def _dimensions(lhs: Any, axis: int) -> tuple[Any, Any]:
    return (((len(lhs.shape) - 1,), (axis,)), ((), ()))


@_mixed_dot.def_impl
def _evaluate(lhs: Any, rhs: Any, *, axis: int) -> Any:
    return jax.jit(lambda left, right: _mixed_dot.bind(left, right, axis=axis))(lhs, rhs)


@_mixed_dot.def_abstract_eval
def _abstract(lhs: Any, rhs: Any, *, axis: int) -> Any:
    return lhs.update(shape=(*lhs.shape[:-1], rhs.shape[1 - axis]), dtype=np.dtype(np.int32))


def _lower(context: Any, lhs: Any, rhs: Any, *, axis: int) -> list[Any]:
    left, right = context.avals_in
    numbers = stablehlo.DotDimensionNumbers.get(
        lhs_batching_dimensions=[],
        rhs_batching_dimensions=[],
        lhs_contracting_dimensions=[len(left.shape) - 1],
        rhs_contracting_dimensions=[axis],
    )
    shape = (*left.shape[:-1], right.shape[1 - axis])
    result = ir.RankedTensorType.get(shape, ir.IntegerType.get_signless(32))
    return [stablehlo.dot_general(result, lhs, rhs, numbers)]


mlir.register_lowering(_mixed_dot, _lower)


def _batch(arguments: tuple[Any, Any], axes: tuple[Any, Any], *, axis: int) -> tuple[Any, int]:
    lhs, rhs = arguments
    if axes[1] is None:
        return _mixed_dot.bind(jnp.moveaxis(lhs, axes[0], 0), rhs, axis=axis), 0

    def by_int32(left: jax.Array, right: jax.Array) -> jax.Array:
        return lax.dot_general(left.astype(jnp.int32), right.astype(jnp.int32), _dimensions(left, axis))

    return jax.vmap(by_int32, in_axes=axes)(lhs, rhs), 0


batching.primitive_batchers[_mixed_dot] = _batch


def _signed(tokens: jax.Array, codes: jax.Array, axis: int) -> jax.Array:
    return lax.dot_general(tokens, codes, _dimensions(tokens, axis), preferred_element_type=jnp.int32)


def _unsigned(tokens: jax.Array, codes: jax.Array, axis: int) -> jax.Array:
    """Multiplies by tokens plus 128 and takes off 128 times the sums of the codes; exact in int32."""
    shifted = lax.bitcast_convert_type(tokens, jnp.uint8) ^ jnp.uint8(ZERO_POINT)
    ones = jnp.ones((NUM_ONES_ROWS, codes.shape[axis]), jnp.uint8)
    sums = _mixed_dot.bind(ones, codes, axis=axis)[0]
    return _mixed_dot.bind(shifted, codes, axis=axis) - sums * jnp.int32(ZERO_POINT)


_SIGNED, _UNSIGNED = ([functools.partial(form, axis=axis) for axis in (0, 1)] for form in (_signed, _unsigned))
"""By contracted axis; made once, so that JAX traces each once for every shape."""


@functools.cache
def has_mixed_products() -> bool:
    """Returns whether this machine's processor multiplies unsigned by signed bytes faster than signed ones, as far as Linux says."""
    features = processor_features().split()
    return _MIXED_INSTRUCTION in features and _SIGNED_INSTRUCTION not in features


def integer_dot(
    tokens: Int[Array, "*batch in_axis"], codes: Int[Array, "rows columns"], axis: int
) -> Int[Array, "..."]:
    """Multiplies int8 by int8 and sums exactly in int32; not to be differentiated.

    Args:
      tokens: int8; the last axis is contracted, of at most 65,000 entries, so that no sum overflows.
      codes: int8.
      axis: Contracted axis of the codes, 0 or 1.

    Returns:
      int32 ``[*batch, columns]``, or ``[*batch, rows]`` for axis 1.
    """
    is_exported = not all(isinstance(size, int) for size in tokens.shape)  # symbolic sizes: a program for any machine
    if is_exported or not has_mixed_products():
        return _signed(tokens, codes, axis)
    return lax.platform_dependent(tokens, codes, cpu=_UNSIGNED[axis], default=_SIGNED[axis])
