"""Dense, embedding and layer norm modules over leaves that may be typed."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from flaxbert.core.contraction import contract
from flaxbert.core.reductions import column_sum, compute_once, row_sum
from flaxbert.nn.split_length import look_up


def truncated_normal(key: Any, shape: tuple[int, ...], deviation: float) -> jax.Array:
    """Draws new weights as BERT does: normal, cut at two standard deviations (Devlin et al., 2019).

    Args:
      key: A JAX key.
      shape: Shape of the leaf.
      deviation: Standard deviation before the cut.

    Returns:
      float32 weights.
    """
    return jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32) * jnp.float32(deviation)


def multiply_groups(
    inputs: Float[Array, "*batch in_axis"], kernel: Float[Array, "groups group_in group_out"]
) -> Float[Array, "*batch out_axis"]:
    """Multiplies each group of the last axis by a kernel of its own; float32.

    Groups stand first in the product: XLA:CPU has none in bfloat16 whose batch axis stands elsewhere.

    Args:
      inputs: Activations in the compute type, ``groups * group_in`` wide.
      kernel: The kernels, in the same type.

    Returns:
      The products, ``groups * group_out`` wide.
    """
    groups, width, _ = kernel.shape
    split = jnp.swapaxes(inputs.reshape(-1, groups, width), 0, 1)
    dimensions = (((2,), (1,)), ((0,), (0,)))
    products = jax.lax.dot_general(split, kernel, dimensions, preferred_element_type=jnp.float32)
    return jnp.swapaxes(products, 0, 1).reshape(*inputs.shape[:-1], -1)


class Dense(nnx.Module):
    """``inputs @ kernel + bias`` with the kernel in any stored form.

    Args:
      in_size: Entries of the contracted axis.
      out_size: Entries of the new axis.
      deviation: Standard deviation of new weights.
      compute_dtype: Type of operands and result.
      rngs: Source of keys for new weights.
      use_bias: Whether there is a bias.
    """

    def __init__(
        self,
        in_size: int,
        out_size: int,
        deviation: float,
        compute_dtype: Any,
        rngs: nnx.Rngs,
        use_bias: bool = True,
    ) -> None:
        self.compute_dtype = compute_dtype
        self.kernel = nnx.Param(truncated_normal(rngs.params(), (in_size, out_size), deviation))
        if use_bias:
            self.bias = nnx.Param(jnp.zeros((out_size,), jnp.float32))

    def _leaves(self) -> tuple[Any, Any]:
        return self.kernel.get_value(), self.bias.get_value() if hasattr(self, "bias") else None

    def __call__(self, inputs: Float[Array, "*batch in_axis"]) -> Float[Array, "*batch out_axis"]:
        """Returns the products plus bias in the compute type."""
        kernel, bias = self._leaves()
        return contract(inputs, kernel, bias, compute_dtype=self.compute_dtype).astype(self.compute_dtype)

    def by_heads(
        self, inputs: Float[Array, "batch length in_axis"], num_heads: int
    ) -> Float[Array, "batch heads length head_dim"]:
        """Returns products plus bias in the compute type, split into heads that stand before the length.

        Args:
          inputs: Activations.
          num_heads: Heads to split the result into.
        """
        kernel, bias = self._leaves()
        products = contract(inputs, kernel, bias, compute_dtype=self.compute_dtype, num_heads=num_heads)
        return products.astype(self.compute_dtype)


class Embed(nnx.Module):
    """A table of rows that are looked up by number.

    Args:
      rows: Number of rows.
      width: Entries of a row.
      deviation: Standard deviation of new weights.
      rngs: Source of keys for new weights.
    """

    def __init__(self, rows: int, width: int, deviation: float, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Param(truncated_normal(rngs.params(), (rows, width), deviation))

    def __call__(self, indices: Int[Array, "*batch"]) -> Float[Array, "*batch embed"]:
        """Returns the rows in float32."""
        return look_up(self.embedding.get_value(), indices)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    inputs: Float[Array, "*batch embed"], scale: Float[Array, "embed"], bias: Float[Array, "embed"], epsilon: float
) -> Float[Array, "*batch embed"]:
    """Normalises the last axis with statistics in float32 (Ba, Kiros and Hinton, 2016).

    Args:
      inputs: Activations.
      scale: Multiplied afterwards.
      bias: Added afterwards.
      epsilon: Added to the variance.

    Returns:
      The result in the type of the inputs.
    """
    return _norm_forward(inputs, scale, bias, epsilon)[0]


def _norm_forward(inputs: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple[jax.Array, Any]:
    values = inputs.astype(jnp.float32)
    width = values.shape[-1]
    mean = row_sum(inputs) / width
    centred = values - mean
    inverse = jax.lax.rsqrt(row_sum(jnp.square(centred)) / width + epsilon)
    normalised = compute_once(
        (centred * inverse * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(inputs.dtype)
    )
    return normalised, (inputs, scale, bias, mean, inverse)


def _norm_backward(epsilon: float, residuals: Any, cotangent: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    inputs, scale, bias, mean, inverse = residuals
    width = inputs.shape[-1]
    normal = (inputs.astype(jnp.float32) - mean) * inverse
    cotangent = cotangent.astype(jnp.float32)
    scaled = cotangent * scale.astype(jnp.float32)
    first = row_sum(scaled) / width
    second = row_sum(scaled * normal) / width
    inputs_gradient = compute_once((inverse * (scaled - first - normal * second)).astype(inputs.dtype))
    scale_gradient = column_sum((cotangent * normal).astype(inputs.dtype)).astype(scale.dtype)
    return inputs_gradient, scale_gradient, column_sum(cotangent.astype(inputs.dtype)).astype(bias.dtype)


layer_norm.defvjp(_norm_forward, _norm_backward)


class LayerNorm(nnx.Module):
    """Layer normalisation with statistics in float32 (Ba, Kiros and Hinton, 2016).

    Args:
      width: Entries of the normalised axis.
      epsilon: Added to the variance.
      compute_dtype: Type of the result.
      use_bias: Whether there is a bias.
    """

    def __init__(self, width: int, epsilon: float, compute_dtype: Any, use_bias: bool = True) -> None:
        self.epsilon = epsilon
        self.compute_dtype = compute_dtype
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        if use_bias:
            self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))

    def __call__(self, inputs: Float[Array, "*batch embed"]) -> Float[Array, "*batch embed"]:
        """Returns the normalised inputs in the compute type."""
        scale = self.scale.get_value()
        bias = self.bias.get_value() if hasattr(self, "bias") else jnp.zeros_like(scale)
        return jnp.asarray(layer_norm(inputs, scale, bias, self.epsilon)).astype(self.compute_dtype)
