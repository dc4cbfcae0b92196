"""Dropout whose masks are a keyed hash of the position: never stored, drawn again in the backward pass.

A key is a JAX key, or two random 32-bit words made from one; ``fold`` derives the key of a layer and of a place in it.
Modules therefore keep no random state, and a mask is the same under any sharding.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, UInt32

from flaxbert.core.axes import Size
from flaxbert.core.traced_mesh import rows_before

_GOLDEN = 0x9E3779B9


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MaskPart:
    """Which part of a mask of attention weights, ``[batch, heads, queries, keys]``, is drawn, and from which words.

    Attributes:
      words: Two random words.
      first_row: Number of the first row that is drawn, counted over batch, heads and queries of the whole mask; a number or a scalar.
      num_heads: Heads of the whole mask; 0: as many as are drawn.
      num_queries: Queries of the whole mask; 0: as many as are drawn.
    """

    words: Any
    first_row: Any = 0
    num_heads: int = dataclasses.field(default=0, metadata={"static": True})
    num_queries: int = dataclasses.field(default=0, metadata={"static": True})

    def keep(self, rate: float, shape: tuple[int, ...], transposed: bool = False) -> Bool[Array, "..."]:
        """Returns the part, drawn as ``keep_mask`` does.

        Args:
          rate: Share of dropped entries.
          shape: Shape of the part.
          transposed: As for ``keep_mask``.
        """
        return keep_mask(
            self.words,
            rate,
            shape,
            transposed=transposed,
            first_row=self.first_row,
            num_rows=self.num_queries,
            num_groups=self.num_heads,
        )


def _mix(values: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Scrambles 32 bits reversibly: the hash ``lowbias32`` (Wellons, 2018)."""
    values = (values ^ (values >> 16)) * jnp.uint32(0x7FEB352D)
    values = (values ^ (values >> 15)) * jnp.uint32(0x846CA68B)
    return values ^ (values >> 16)


def _materialise(words: UInt32[Array, "2"]) -> UInt32[Array, "2"]:
    """Returns the words through a sort by position, which XLA computes once instead of inside every use.

    Fused into the masks, and from there into the sums of a layer norm, a chain of folds compiles for minutes on CPU; an
    optimisation barrier does not prevent it.
    """
    return lax.sort((lax.iota(jnp.int32, 2), words), num_keys=1)[1]


def key_words(key: Any) -> UInt32[Array, "2"]:
    """Returns the two words that masks are drawn from.

    Args:
      key: A JAX key, or words already.
    """
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return jax.random.bits(key, (2,), jnp.uint32)
    return key


def fold(key: Any, place: Any) -> Any:
    """Returns the key of one place, or None where there is no dropout.

    Args:
      key: A JAX key, words, or None.
      place: Number of the layer or of the place in it.
    """
    if key is None:
        return None
    words = key_words(key)
    number = jnp.asarray(place).astype(jnp.uint32) * jnp.uint32(_GOLDEN) + jnp.uint32(1)
    return _materialise(_mix(_mix(words ^ number) + jnp.flip(words)))


def keep_mask(
    key: Any,
    rate: float,
    shape: tuple[int, ...],
    *,
    transposed: bool = False,
    first_row: Any = 0,
    num_rows: Size = 0,
    num_groups: int = 0,
) -> Bool[Array, "..."]:
    """Draws which entries are kept.

    Each row has a well mixed random word and each column another; their sum is hashed once more and compared with the rate.

    Args:
      key: A JAX key or words.
      rate: Share of dropped entries, in [0, 1), exact to 2**-32.
      shape: Shape of the mask.
      transposed: Draw the mask of the array whose last two axes are swapped, in swapped order.
      first_row: Rows of the whole array that come before, where the mask is of a later part of it; a number or a scalar array.
      num_rows: Size of the whole array's last axis but one, where the mask is of some entries of that axis; 0: of all.
      num_groups: Size of the whole array's last axis but two, where the mask is of some entries of that axis; 0: of all.

    Returns:
      Mask, True with probability ``1 - rate``.
    """
    if len(shape) < 2:
        return keep_mask(key, rate, (1, *(shape or (1,))), first_row=first_row, num_rows=num_rows).reshape(shape)
    words = key_words(key)
    *row_shape, num_columns = (*shape[:-2], shape[-1], shape[-2]) if transposed else shape
    sizes = [*row_shape[:-1], num_rows or row_shape[-1]]
    if num_groups:
        sizes[-2] = num_groups
    first = jnp.uint32(first_row) if isinstance(first_row, int) else first_row.astype(jnp.uint32)
    index = jnp.broadcast_to(first, row_shape)
    stride = 1
    for axis in reversed(range(len(row_shape))):
        index = index + lax.broadcasted_iota(jnp.uint32, tuple(row_shape), axis) * jnp.uint32(stride)
        stride *= sizes[axis]
    row = _mix(_mix(index + words[0]) ^ words[1])
    column = _mix(lax.iota(jnp.uint32, num_columns) * jnp.uint32(_GOLDEN) ^ words[1])
    row, column = lax.optimization_barrier((row, column))  # computed once, not once for each entry
    mixed = row[..., None, :] + column[:, None] if transposed else row[..., None] + column
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x846CA68B)
    return (mixed ^ (mixed >> 16)) >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


def _rows_before(shape: tuple[int, ...], num_rows: Size) -> Any:
    """Returns how many rows of a mask come before those of the part of the batch that the code sees."""
    examples, *inner = shape[:-1]
    if inner and num_rows:
        inner[-1] = num_rows
    return rows_before(examples * math.prod(inner))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _dropout(inputs: jax.Array, words: jax.Array, rate: float, num_rows: Size, by_example: bool) -> jax.Array:
    kept = inputs * jnp.asarray(1.0 / (1.0 - rate), inputs.dtype)
    first_row = _rows_before(inputs.shape, num_rows) if by_example and inputs.ndim > 1 else 0
    mask = keep_mask(words, rate, inputs.shape, first_row=first_row, num_rows=num_rows)
    return jnp.where(mask, kept, jnp.zeros((), inputs.dtype))


def _dropout_forward(
    inputs: jax.Array, words: jax.Array, rate: float, num_rows: Size, by_example: bool
) -> tuple[jax.Array, jax.Array]:
    return _dropout(inputs, words, rate, num_rows, by_example), words


def _dropout_backward(
    rate: float, num_rows: Size, by_example: bool, words: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, None]:
    return _dropout(cotangent, words, rate, num_rows, by_example), None


_dropout.defvjp(_dropout_forward, _dropout_backward)


def dropout(
    inputs: Float[Array, "..."], key: Any, rate: float, num_rows: Size = 0, *, by_example: bool = True
) -> Float[Array, "..."]:
    """Zeroes entries at random and scales the rest up (Srivastava et al., 2014).

    Args:
      inputs: Activations.
      key: A JAX key or words, or None to return the inputs as they are.
      rate: Share of dropped entries, in [0, 1).
      num_rows: As for ``keep_mask``.
      by_example: Whether the first axis is that of the examples, and not of something that all examples share.

    Returns:
      The inputs with some entries zero and the rest scaled up.
    """
    if key is None or rate <= 0.0:
        return inputs
    return _dropout(inputs, key_words(key), rate, num_rows, by_example)
