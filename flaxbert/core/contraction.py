"""Multiplying by leaves: the one place that looks inside a typed leaf.

``contract`` multiplies activations by a kernel, ``take`` looks up rows of an embedding table. Products are accumulated in
float32 whatever the compute type. Gradients are computed in the compute type too: JAX's own rule would run them in
float32, since the cotangent of a float32 accumulation is float32; here the cotangent is cast first.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from flaxbert.core.arrays import GroupedArray, QuantizedArray, SparseArray, TypedArray
from flaxbert.core.integer_dot import integer_dot
from flaxbert.core.learned_step_array import LearnedStepArray
from flaxbert.core.low_bit_arrays import (
    FLOAT8,
    FLOAT8_MAXIMUM,
    Float8Array,
    ObservedArray,
    PackedArray,
    StaticQuantizedArray,
)
from flaxbert.core.movement_array import MovementArray
from flaxbert.core.reductions import column_sum, row_magnitude
from flaxbert.errors import ShapeError

INT8_MAXIMUM = 127.0
"""Largest magnitude of a symmetric int8 code."""

SMALLEST_SCALE = 1e-30
"""Keeps the scale of an all-zero token away from 0, where the codes would be 0/0."""


def _dot(left: jax.Array, right: jax.Array, left_axes: tuple[int, ...], right_axes: tuple[int, ...]) -> jax.Array:
    """Accumulates in float32 and returns float32, the only form of a bfloat16 dot that reaches the CPU's matrix unit."""
    dimensions = ((left_axes, right_axes), ((), ()))
    return lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)


def _add_bias(products: jax.Array, bias: jax.Array | None, num_heads: int) -> jax.Array:
    """Adds the bias and, with heads, moves them before the length.

    The bias stands on the left on purpose: XLA:CPU decides by the operands' layouts which bfloat16 dots reach the library,
    and a transposed array passes its odd layout on through elementwise operations that have it on the left.
    """
    if not num_heads:
        return products if bias is None else products + bias.astype(jnp.float32)
    products = jnp.swapaxes(products.reshape(*products.shape[:-1], num_heads, -1), -2, -3)
    return products if bias is None else bias.astype(jnp.float32).reshape(num_heads, 1, -1) + products


def _join_heads(cotangent: jax.Array, num_heads: int) -> jax.Array:
    if not num_heads:
        return cotangent
    cotangent = jnp.swapaxes(cotangent, -2, -3)
    return cotangent.reshape(*cotangent.shape[:-2], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _linear(
    inputs: jax.Array, kernel: jax.Array, bias: jax.Array | None, dtype: Any, transposed: bool, num_heads: int
) -> jax.Array:
    return _linear_forward(inputs, kernel, bias, dtype, transposed, num_heads)[0]


def _linear_forward(
    inputs: jax.Array, kernel: jax.Array, bias: jax.Array | None, dtype: Any, transposed: bool, num_heads: int
) -> tuple[jax.Array, Any]:
    rounded = inputs.astype(dtype)
    products = _dot(rounded, kernel.astype(dtype), (inputs.ndim - 1,), (1 if transposed else 0,))
    products = _add_bias(products, bias, num_heads)
    # The empty array carries the dtype that the cotangent of the inputs must have.
    return products, (rounded, kernel, bias, jnp.zeros((0,), inputs.dtype))


def _linear_backward(
    dtype: Any, transposed: bool, num_heads: int, residuals: Any, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    inputs, kernel, bias, like = residuals
    cotangent = _join_heads(cotangent.astype(dtype), num_heads)
    leading = tuple(range(inputs.ndim - 1))
    last = (inputs.ndim - 1,)
    inputs_gradient = _dot(cotangent, kernel.astype(dtype), last, (0 if transposed else 1,)).astype(like.dtype)
    first, second = (cotangent, inputs) if transposed else (inputs, cotangent)
    kernel_gradient = _dot(first, second, leading, leading).astype(kernel.dtype)
    bias_gradient = None if bias is None else column_sum(cotangent).astype(bias.dtype)
    return inputs_gradient, kernel_gradient, bias_gradient


_linear.defvjp(_linear_forward, _linear_backward)


def quantize_tokens(
    inputs: Float[Array, "*batch embed"],
) -> tuple[Int[Array, "*batch embed"], Float[Array, "*batch 1"]]:
    """Rounds every token to int8 codes with one scale per token.

    Args:
      inputs: Activations.

    Returns:
      Codes in [-127, 127] and float32 scales; ``|inputs - codes * scale| <= scale / 2``.
    """
    inputs = inputs.astype(jnp.float32)
    scale = jnp.maximum(row_magnitude(inputs) * (1.0 / INT8_MAXIMUM), SMALLEST_SCALE)
    return jnp.round(inputs * (1.0 / scale)).astype(jnp.int8), scale


def _scale_per_output(leaf: QuantizedArray, transposed: bool) -> jax.Array:
    """Returns the scales ``[out]`` of a leaf, whose contracted axis must have one scale only."""
    contracted = 1 if transposed else 0
    if leaf.scale.shape[contracted] != 1:
        raise ShapeError(
            f"A quantized leaf {leaf.shape} with scales {tuple(leaf.scale.shape)} can not be contracted along axis "
            f"{contracted}: its scale varies there. Quantize it with one scale per entry of the other axis."
        )
    return jnp.broadcast_to(jnp.squeeze(leaf.scale, contracted), (leaf.shape[1 - contracted],))


def _integer_dot(inputs: jax.Array, codes: jax.Array, transposed: bool) -> jax.Array:
    tokens, token_scale = quantize_tokens(inputs)
    return integer_dot(tokens, codes, 1 if transposed else 0).astype(jnp.float32) * token_scale


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _quantized_dot(inputs: jax.Array, codes: jax.Array, scale: jax.Array, transposed: bool, _dtype: Any) -> jax.Array:
    return _integer_dot(inputs, codes, transposed) * scale


def _quantized_forward(
    inputs: jax.Array, codes: jax.Array, scale: jax.Array, transposed: bool, dtype: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    return _quantized_dot(inputs, codes, scale, transposed, dtype), (inputs, codes, scale)


def _quantized_backward(
    transposed: bool, dtype: Any, residuals: tuple[jax.Array, jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, None, jax.Array]:
    """Gradients of the product with the dequantized kernel; the rounding of tokens passes them straight through."""
    inputs, codes, scale = residuals
    per_code = (cotangent.astype(jnp.float32) * scale).astype(dtype)
    dimensions = (((cotangent.ndim - 1,), (0 if transposed else 1,)), ((), ()))
    inputs_gradient = lax.dot_general(per_code, codes.astype(dtype), dimensions, preferred_element_type=jnp.float32)
    leading = tuple(range(cotangent.ndim - 1))
    scale_gradient = jnp.sum(cotangent * _integer_dot(inputs, codes, transposed), axis=leading)
    return inputs_gradient.astype(inputs.dtype), None, scale_gradient


_quantized_dot.defvjp(_quantized_forward, _quantized_backward)


def _round_inputs(inputs: jax.Array, input_scale: jax.Array, input_zero: jax.Array) -> jax.Array:
    """Returns int8 codes of inputs with scales that are known beforehand."""
    scaled = inputs.astype(jnp.float32) * (1.0 / input_scale) + input_zero
    return jnp.clip(jnp.round(scaled), -INT8_MAXIMUM - 1.0, INT8_MAXIMUM).astype(jnp.int8)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _static_dot(inputs: jax.Array, leaf: StaticQuantizedArray, _dtype: Any) -> jax.Array:
    tokens = _round_inputs(inputs, leaf.input_scale[:, 0], leaf.input_zero[0, 0])
    return integer_dot(tokens, leaf.codes, 0).astype(jnp.float32) * leaf.scale[0] + leaf.shift[0]


def _static_forward(inputs: jax.Array, leaf: StaticQuantizedArray, dtype: Any) -> tuple[jax.Array, Any]:
    return _static_dot(inputs, leaf, dtype), (leaf, jnp.zeros((0,), inputs.dtype))


def _static_backward(dtype: Any, residuals: Any, cotangent: jax.Array) -> tuple[jax.Array, None]:
    """Gradient of the inputs alone: straight through their rounding; what was calibrated is not trained."""
    leaf, like = residuals
    kernel = (leaf.codes.astype(jnp.float32) * leaf.scale / leaf.input_scale).astype(dtype)
    return _dot(cotangent.astype(dtype), kernel, (cotangent.ndim - 1,), (1,)).astype(like.dtype), None


_static_dot.defvjp(_static_forward, _static_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _float8_dot(inputs: jax.Array, leaf: Float8Array, dtype: Any, transposed: bool) -> jax.Array:
    axis = 1 if transposed else 0

    def write_out(inputs: jax.Array, values: jax.Array, scale: jax.Array) -> jax.Array:
        dense = (values.astype(jnp.float32) * scale).astype(dtype)
        return _dot(inputs.astype(dtype), dense, (inputs.ndim - 1,), (axis,))

    def multiply(inputs: jax.Array, values: jax.Array, scale: jax.Array) -> jax.Array:
        inputs = inputs.astype(jnp.float32)
        own = jnp.maximum(row_magnitude(inputs) * (1.0 / FLOAT8_MAXIMUM), SMALLEST_SCALE)
        tokens = (inputs / own).astype(FLOAT8)
        return _dot(tokens, values, (inputs.ndim - 1,), (axis,)) * own * jnp.squeeze(scale, axis)

    if leaf.scale.shape[axis] != 1:  # scales along the contracted axis can not wait until after the sum
        return write_out(inputs, leaf.values, leaf.scale)
    return lax.platform_dependent(inputs, leaf.values, leaf.scale, cuda=multiply, default=write_out)


def _float8_forward(inputs: jax.Array, leaf: Float8Array, dtype: Any, transposed: bool) -> tuple[jax.Array, Any]:
    return _float8_dot(inputs, leaf, dtype, transposed), (leaf, jnp.zeros((0,), inputs.dtype))


def _float8_backward(dtype: Any, transposed: bool, residuals: Any, cotangent: jax.Array) -> tuple[jax.Array, None]:
    """Gradient of the inputs alone: straight through their rounding."""
    leaf, like = residuals
    dense = leaf.materialize().astype(dtype)
    contracted = (0,) if transposed else (1,)
    return _dot(cotangent.astype(dtype), dense, (cotangent.ndim - 1,), contracted).astype(like.dtype), None


_float8_dot.defvjp(_float8_forward, _float8_backward)


_WRITTEN_OUT = (SparseArray, MovementArray, GroupedArray, PackedArray)
"""Leaves that are written out in the compute type for the time of a product."""


def contract(
    inputs: Float[Array, "*batch in_axis"],
    leaf: Any,
    bias: Float[Array, "out_axis"] | None = None,
    *,
    compute_dtype: Any = jnp.float32,
    transposed: bool = False,
    num_heads: int = 0,
) -> Float[Array, "..."]:
    """Multiplies activations by a kernel, whatever form it is stored in, and adds a bias.

    Args:
      inputs: Activations; their last axis is contracted. Keep batch and length as separate axes: the gradient of a kernel
        is then fast on CPU.
      leaf: Kernel ``[in, out]``: an array or a typed leaf.
      bias: Added in float32; None for none.
      compute_dtype: Type that the operands are cast to; accumulation is in float32. ``QuantizedArray`` kernels are
        multiplied as int8 by int8 whatever this says; their gradients are computed in it, and the rounding of the
        activations passes gradients straight through (Bengio, Leonard and Courville, 2013). So are ``StaticQuantizedArray``
        kernels, with scales of the activations that were measured beforehand, and on NVIDIA GPUs ``Float8Array`` kernels in float8. Other typed kernels are written out in it for the time
        of the product.
      transposed: Contract with the leaf's last axis instead of its first, as the decoder tied to an embedding does.
      num_heads: Splits the result into heads that stand before the length; 0 leaves it as it is.

    Returns:
      float32 products ``[*batch, out]``, or ``[batch, heads, length, head_dim]`` with heads.

    Raises:
      ShapeError: The scale of a quantized leaf varies along the contracted axis.
      TypeError: A typed leaf that contraction does not know.
    """
    dtype = jnp.dtype(compute_dtype)
    if isinstance(leaf, ObservedArray):
        leaf.tell(inputs)
        leaf = leaf.values
    if isinstance(leaf, LearnedStepArray):
        inputs, leaf = leaf.round_inputs(inputs), leaf.materialize()
    if isinstance(leaf, StaticQuantizedArray):
        if transposed:
            raise ShapeError(f"A static kernel {leaf.shape} can not be contracted along its outputs.")
        return _add_bias(_static_dot(inputs, leaf, dtype), bias, num_heads)
    if isinstance(leaf, QuantizedArray):
        scale = _scale_per_output(leaf, transposed)
        return _add_bias(_quantized_dot(inputs, leaf.codes, scale, transposed, dtype), bias, num_heads)
    if isinstance(leaf, Float8Array):
        return _add_bias(_float8_dot(inputs, leaf, dtype, transposed), bias, num_heads)
    if isinstance(leaf, _WRITTEN_OUT):
        leaf = leaf.materialize()
    if isinstance(leaf, TypedArray):
        raise TypeError(f"contract does not know how to multiply by a {type(leaf).__name__}.")
    return _linear(inputs, leaf, bias, dtype, transposed, num_heads)


def take(leaf: Any, indices: Int[Array, "*batch"], *, compute_dtype: Any = jnp.float32) -> Float[Array, "*batch embed"]:
    """Looks up rows of an embedding table, whatever form it is stored in.

    Args:
      leaf: Table ``[rows, embed]``: an array or a typed leaf.
      indices: Row numbers in [0, rows). Compiled code can not raise, so a number past the table gives a row of NaN and a
        negative one counts from the end; tokens are checked where they enter the program.
      compute_dtype: Type of the result.

    Returns:
      The rows.

    Raises:
      ShapeError: A quantized table has no scale per row.
      TypeError: A typed leaf that look-ups do not know.
    """
    if isinstance(leaf, ObservedArray):
        leaf = leaf.values
    if isinstance(leaf, QuantizedArray | Float8Array):
        if leaf.scale.shape[0] != leaf.shape[0]:
            raise ShapeError(
                f"Rows of a quantized table {leaf.shape} with scales {tuple(leaf.scale.shape)} can not be looked up; "
                "quantize it with one scale per row."
            )
        stored = leaf.codes if isinstance(leaf, QuantizedArray) else leaf.values
        rows = jnp.take(stored, indices, axis=0).astype(jnp.float32)
        return (rows * jnp.take(leaf.scale, indices, axis=0)).astype(compute_dtype)
    if isinstance(leaf, LearnedStepArray):
        rows = leaf.rows(indices.reshape(-1)).materialize()
        return rows.astype(compute_dtype).reshape(*indices.shape, leaf.shape[-1])
    if isinstance(leaf, GroupedArray | PackedArray):
        if leaf.axis != -1:
            raise ShapeError(
                f"Rows of a table {leaf.shape} can not be looked up: its groups lie along the rows, not the columns."
            )
        rows = jax.tree.map(lambda part: jnp.take(part, indices.reshape(-1), axis=0), leaf)
        return rows.materialize().astype(compute_dtype).reshape(*indices.shape, leaf.shape[-1])
    if isinstance(leaf, SparseArray | MovementArray):
        leaf = leaf.materialize()
    if isinstance(leaf, TypedArray):
        raise TypeError(f"take does not know how to look up rows of a {type(leaf).__name__}.")
    return jnp.take(leaf, indices, axis=0).astype(compute_dtype)
