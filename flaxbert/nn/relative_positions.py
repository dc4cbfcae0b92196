"""How far two tokens are apart: rows of a table of distances, and scores by distance laid out by query and key."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Int32

_BLOCKS = (64, 48)
"""Vectors that are multiplied together by the rows of distances that they can meet."""


def log_buckets(distances: Int[np.ndarray, "..."], num_buckets: int, num_positions: int) -> Int[np.ndarray, "..."]:
    """Returns distances that are exact up to half the buckets and logarithmic from there on (He et al., 2021, DeBERTa-v2's code).

    Computed in float32 as the reference does, by numpy: a compiled logarithm that is off by its last bit would put a distance
    into the next bucket.

    Args:
      distances: Position of the query less that of the key.
      num_buckets: Buckets on each side, of which half are logarithmic.
      num_positions: Distances from here on have left the last bucket.
    """
    middle = num_buckets // 2
    far = np.abs(distances)
    spread = np.float32((num_positions - 1) / middle)
    if spread <= 1.0:
        return distances
    share = np.log(np.maximum(far, middle).astype(np.float32) / np.float32(middle)) / np.log(np.full((1,), spread))
    logarithmic = np.ceil(share * np.float32(middle - 1)).astype(np.int64) + middle
    return np.where(far <= middle, distances, np.sign(distances) * logarithmic)


def distance_rows(distances: Int[np.ndarray, "..."], num_buckets: int, num_positions: int) -> Int32[np.ndarray, "..."]:
    """Returns the row of a table of distances that each distance has; the farthest to each side share a row.

    Args:
      distances: Position of the query less that of the key.
      num_buckets: Buckets on each side; less than 1 where every distance has a row of its own.
      num_positions: Distances that are told apart.
    """
    span = num_buckets if num_buckets > 0 else num_positions
    if num_buckets > 0:
        distances = log_buckets(distances, num_buckets, num_positions)
    return np.clip(distances + span, 0, 2 * span - 1).astype(np.int32)


@functools.lru_cache(maxsize=256)
def ordered_rows(
    length: int, num_buckets: int, num_positions: int
) -> tuple[Int32[np.ndarray, "rows"], Int32[np.ndarray, "offsets"]]:
    """Returns the rows of the table that occur among tokens in order and, for each distance from ``1 - length`` to ``length - 1``,
    the place of its row among these.

    Args:
      length: Number of tokens.
      num_buckets: As for ``distance_rows``.
      num_positions: As for ``distance_rows``.
    """
    rows, places = np.unique(
        distance_rows(np.arange(1 - length, length), num_buckets, num_positions), return_inverse=True
    )
    return rows, places.reshape(-1).astype(np.int32)


def rows_of_positions(
    positions: Int[Array, "batch length"], num_buckets: int, num_positions: int, farthest: int
) -> Int[Array, "batch length length"]:
    """Returns the row of the table for every query and key whose positions are only known while computing.

    Args:
      positions: Positions of the tokens.
      num_buckets: As for ``distance_rows``.
      num_positions: As for ``distance_rows``.
      farthest: Largest distance of two tokens that see each other.
    """
    table = jnp.asarray(distance_rows(np.arange(-farthest, farthest + 1), num_buckets, num_positions))
    distances = jnp.clip(positions[:, :, None] - positions[:, None, :], -farthest, farthest)
    return jnp.take(table, distances + jnp.int32(farthest))


def skew(scores: Float[Array, "*leading rows offsets"]) -> Float[Array, "*leading rows columns"]:
    """Returns scores by offset shifted into columns: entry ``[i, j]`` is that of row ``i`` at ``rows - 1 + j - i``.

    The rows are laid out one after the other and cut anew, one entry shorter (Dai et al., 2019, appendix B).

    Args:
      scores: One column for each of ``rows + columns - 1`` offsets.
    """
    *leading, rows, width = scores.shape
    if rows == 1:
        return scores
    flat = scores.reshape(*leading, rows * width)
    flat = lax.slice_in_dim(flat, rows - 1, rows - 1 + rows * (width - 1), axis=-1)
    return flat.reshape(*leading, rows, width - 1)[..., : width - rows + 1]


def ordered_scores(
    vectors: Float[Array, "batch heads length head_dim"],
    rows: Float[Array, "heads rows head_dim"],
    places: Int32[np.ndarray, "offsets"],
) -> Float[Array, "batch heads length length"]:
    """Returns the products of vectors with rows by offset: entry ``[i, j]`` is ``vector_i . row(j - i)``, float32.

    A block of vectors is multiplied by no more rows than it can meet: ``length + block - 1`` of ``2 * length - 1``.

    Args:
      vectors: Queries or keys.
      rows: Keys or queries of the rows.
      places: Row of each offset from ``1 - length`` to ``length - 1``.
    """
    batch, heads, length, width = vectors.shape
    block = next((size for size in _BLOCKS if length % size == 0 and length > size), length)
    num_blocks = length // block
    firsts = np.arange(num_blocks)[::-1, None] * block
    met = jnp.take(rows, places[firsts + np.arange(length + block - 1)], axis=1)
    # Heads and blocks stand first, so that one product serves all inputs of a batch and no row is copied for each.
    blocks = vectors.reshape(batch, heads, num_blocks, block, width).transpose(1, 2, 0, 3, 4)
    blocks = blocks.reshape(heads, num_blocks, batch * block, width)
    dimensions = (((3,), (3,)), ((0, 1), (0, 1)))
    products = lax.dot_general(blocks, met, dimensions, preferred_element_type=jnp.float32)
    scores = skew(products.reshape(heads, num_blocks, batch, block, length + block - 1))
    return scores.transpose(2, 0, 1, 3, 4).reshape(batch, heads, length, length)


def _by_rows(vectors: jax.Array, rows: jax.Array) -> jax.Array:
    rows = jnp.broadcast_to(rows, (vectors.shape[0], *rows.shape))
    dimensions = (((3,), (3,)), ((0, 1), (0, 1)))
    return lax.dot_general(vectors, rows, dimensions, preferred_element_type=jnp.float32)


def _gather(scores: jax.Array, places: jax.Array) -> jax.Array:
    return jnp.take_along_axis(scores, places[:, None], axis=-1, mode="clip")


def relative_scores(
    query: Float[Array, "batch heads length head_dim"],
    key: Float[Array, "batch heads length head_dim"],
    row_keys: Float[Array, "heads rows head_dim"] | None,
    row_queries: Float[Array, "heads rows head_dim"] | None,
    places: Any,
    ordered_places: Any,
) -> Float[Array, "batch heads length length"]:
    """Returns ``query_i . row_key(i, j) + key_j . row_query(i, j)`` for every query i and key j, float32 (He et al., 2020, section 3.1).

    Args:
      query: Queries.
      key: Keys.
      row_keys: Keys of the rows of distances; None leaves out the first product.
      row_queries: Queries of the rows of distances; None leaves out the second.
      places: Row of each query and key, int32 ``[batch or 1, length, length]``; None where tokens stand in order.
      ordered_places: Row of each distance from ``1 - length`` to ``length - 1``, int32, where tokens stand in order; else None.
    """
    scores = []
    if row_keys is not None and places is not None:
        scores.append(_gather(_by_rows(query, row_keys), places))
    elif row_keys is not None:
        scores.append(ordered_scores(query, row_keys, ordered_places[::-1]))
    if row_queries is not None and places is not None:
        scores.append(jnp.swapaxes(_gather(_by_rows(key, row_queries), jnp.swapaxes(places, 1, 2)), -1, -2))
    elif row_queries is not None:
        scores.append(jnp.swapaxes(ordered_scores(key, row_queries, ordered_places), -1, -2))
    return functools.reduce(jnp.add, scores)
