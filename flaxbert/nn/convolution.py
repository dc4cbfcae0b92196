"""Convolutions along the length that stay inside a text: padding and other segments count as zeros."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def shifted(
    hidden: Float[Array, "batch length ..."], segment_ids: Int[Array, "batch length"], size: int
) -> Iterator[Float[Array, "batch length ..."]]:
    """Yields, for each tap of a centred kernel, the vector that every token has at that place, or zeros.

    A token has no vector at padding, beyond the ends of its row, or in another segment. So a row gives the same results
    alone, padded and packed.

    Args:
      hidden: Vectors.
      segment_ids: 0 for padding, else the number of the token's segment.
      size: Taps of the kernel, an odd number.
    """
    length = hidden.shape[1]
    reach = size // 2
    margin = [(0, 0), (reach, reach)]
    padded = jnp.pad(hidden, [*margin, *[(0, 0)] * (hidden.ndim - 2)])
    segments = jnp.pad(segment_ids, margin)
    for tap in range(size):
        values = jax.lax.slice_in_dim(padded, tap, tap + length, axis=1)
        inside = (segments[:, tap : tap + length] == segment_ids) & (segment_ids != 0)
        inside = inside.reshape(*inside.shape, *(1,) * (hidden.ndim - 2))
        yield jnp.where(inside, values, jnp.zeros((), hidden.dtype))
