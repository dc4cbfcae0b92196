"""Rows whose tokens lie on several devices: context parallelism over the mesh axis ``sequence``.

Everything but attention works on one token at a time, so the compiler splits it as it splits the batch. Attention is written by
hand: every device keeps its queries and gathers the keys, values and segment ids of whole rows. A softmax then sees all of its
scores at once, as on one device, so packed rows, padding, positions and dropout need no further rule, and any implementation of
attention runs unchanged. A ring of blocks (Liu et al., 2023) would hold less at a time, but an encoder's keys and values are
``2 * length * embed`` numbers beside ``heads * length * length`` scores, and rings need running sums in every kernel. In the
backward pass the gathering becomes a reduce-scatter. Layers that see a window fetch only the tokens that it reaches beyond the
device's own.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from flaxbert.core.contraction import take
from flaxbert.core.sharding import ROWS, SEQUENCE, TENSOR
from flaxbert.core.traced_mesh import automatic, part_number, split_rows, ways
from flaxbert.nn.dropout import MaskPart

Mix = Callable[..., jax.Array]
"""``mix(query, key, value, query_ids, key_ids, position_scores, part)``: attention of some queries over whole rows; ``part`` is the
place of its dropout mask, or None."""


def sequence_ways() -> int:
    """Returns over how many devices the tokens of a row are split in the program that is being traced; 1 without a mesh."""
    return ways(SEQUENCE)


def is_on_mesh() -> bool:
    """Returns whether the program that is being traced runs over several devices."""
    return ways(*ROWS, SEQUENCE, TENSOR) > 1


def _fitting(size: int, *names: str) -> tuple[str, ...] | None:
    """Returns the mesh axes that are left to split an axis of an array, or None where they do not divide its size."""
    left = automatic(*names)
    return None if size % ways(*left) else left


def _all_axes() -> set[str]:
    """Returns the mesh axes that a function of one device's part has to be written over."""
    return set(automatic(*jax.sharding.get_abstract_mesh().axis_names))


def _gather(array: jax.Array, axis: int) -> jax.Array:
    return lax.all_gather(array, SEQUENCE, axis=axis, tiled=True)


def _start(axes: tuple[str, ...] | None, size: int) -> jax.Array:
    """Returns where this device's part of an axis begins, in entries of the whole axis."""
    return part_number(axes or ()) * jnp.uint32(size)


def mix_over_devices(
    mix: Mix,
    query: Float[Array, "batch heads length head_dim"],
    key: Float[Array, "batch heads length head_dim"],
    value: Float[Array, "batch heads length head_dim"],
    segment_ids: Int[Array, "batch length"],
    position_scores: Float[Array, "scored heads length length"] | None = None,
    words: Any = None,
) -> Float[Array, "batch heads length head_dim"]:
    """Runs attention on every device for its own rows, heads and queries, over the keys of whole rows.

    Args:
      mix: Attention of one device.
      query: Queries.
      key: Keys.
      value: Values.
      segment_ids: 0 for padding, else the number of the token's segment.
      position_scores: Added to the scores, for the whole batch or alike for all of it.
      words: Two random words for dropout of the weights, or None; masks are those of one device.

    Returns:
      The mixed values.
    """
    batch, heads, length, _ = query.shape
    before = split_rows()
    rows, over_heads = _fitting(batch, *ROWS), _fitting(heads, TENSOR)
    by_token = PartitionSpec(rows, over_heads, SEQUENCE, None)
    scored = None if position_scores is None or position_scores.shape[0] == 1 else rows

    def run(query: Any, key: Any, value: Any, ids: Any, scores: Any, words: Any) -> jax.Array:
        part = None
        if words is not None:
            own_batch, own_heads, own_length, _ = query.shape
            row = _start(before + (rows or ()), own_batch) * jnp.uint32(heads) + _start(over_heads, own_heads)
            first = row * jnp.uint32(length) + _start((SEQUENCE,), own_length)
            part = MaskPart(words, first, heads, length)
        return mix(query, _gather(key, 2), _gather(value, 2), ids, _gather(ids, 1), scores, part)

    return jax.shard_map(
        run,
        in_specs=(
            by_token,
            by_token,
            by_token,
            PartitionSpec(rows, SEQUENCE),
            PartitionSpec(scored, over_heads, SEQUENCE, None),
            PartitionSpec(),
        ),
        out_specs=by_token,
        axis_names=_all_axes(),
        check_vma=False,
    )(query, key, value, segment_ids, position_scores, words)


def _edges(array: jax.Array, axis: int, size: int) -> tuple[jax.Array, jax.Array]:
    """Returns the entries of the devices before and after that lie next to this device's own; zeros at the ends of a row."""
    ways, length = sequence_ways(), array.shape[axis]
    last = lax.slice_in_dim(array, length - size, length, axis=axis)
    first = lax.slice_in_dim(array, 0, size, axis=axis)
    before = lax.ppermute(last, SEQUENCE, [(number, number + 1) for number in range(ways - 1)])
    after = lax.ppermute(first, SEQUENCE, [(number + 1, number) for number in range(ways - 1)])
    return before, after


def mix_near_over_devices(
    mix: Callable[..., jax.Array],
    query: Float[Array, "batch heads length head_dim"],
    key: Float[Array, "batch heads length head_dim"],
    value: Float[Array, "batch heads length head_dim"],
    segment_ids: Int[Array, "batch length"],
    radius: int,
) -> Float[Array, "batch heads length head_dim"]:
    """Runs attention within a window on every device, with the tokens that the window reaches on the devices beside it.

    Args:
      mix: ``mix(query, key, value, segment_ids, edges)`` of one device's tokens; ``edges`` are what stands before and after keys,
        values and segment ids, ``radius`` tokens each.
      query: Queries.
      key: Keys.
      value: Values.
      segment_ids: 0 for padding, else the number of the token's segment.
      radius: Tokens that are seen on either side, at most those of one device.

    Returns:
      The mixed values.
    """
    rows = _fitting(query.shape[0], *ROWS)
    by_token = PartitionSpec(rows, _fitting(query.shape[1], TENSOR), SEQUENCE, None)

    def run(query: Any, key: Any, value: Any, ids: Any) -> jax.Array:
        edges = (_edges(key, 2, radius), _edges(value, 2, radius), _edges(ids, 1, radius))
        return mix(query, key, value, ids, edges)

    return jax.shard_map(
        run,
        in_specs=(by_token, by_token, by_token, PartitionSpec(rows, SEQUENCE)),
        out_specs=by_token,
        axis_names=_all_axes(),
        check_vma=False,
    )(query, key, value, segment_ids)


def look_up(table: Any, indices: Int[Array, "*batch"]) -> Float[Array, "*batch embed"]:
    """Returns rows of a table for tokens; each device looks up its own, and the gradients of the table are summed over them.

    Left to the compiler, the gradients of all tokens may be gathered on every device instead.

    Args:
      table: Array or typed leaf ``[rows, embed]``.
      indices: Row numbers, of one row of tokens for each example, or of one alike for all.
    """
    if sequence_ways() == 1 or indices.ndim != 2 or indices.shape[1] % sequence_ways():
        return take(table, indices)
    return jax.shard_map(
        take,
        in_specs=(PartitionSpec(), PartitionSpec(None, SEQUENCE)),
        out_specs=PartitionSpec(None, SEQUENCE, None),
        axis_names={SEQUENCE},
        check_vma=False,
    )(table, indices)


def pick_tokens(
    hidden: Float[Array, "batch length embed"], positions: Int[Array, "batch slots"]
) -> Float[Array, "batch slots embed"]:
    """Returns the vectors at given places of every row, split over the devices of a row where their number allows it.

    Args:
      hidden: Of all tokens.
      positions: Places.
    """
    if sequence_ways() == 1:
        return jnp.take_along_axis(hidden, positions.astype(jnp.int32)[..., None], axis=1)
    rows = _fitting(hidden.shape[0], *ROWS)
    by_slot = _fitting(positions.shape[1], SEQUENCE)

    def run(hidden: jax.Array, positions: jax.Array) -> jax.Array:
        length = hidden.shape[1]
        place = positions.astype(jnp.int32) - _start((SEQUENCE,), length).astype(jnp.int32)
        is_here = (place >= 0) & (place < length)
        found = jnp.take_along_axis(hidden, jnp.clip(place, 0, length - 1)[..., None], axis=1)
        found = jnp.where(is_here[..., None], found, jnp.zeros((), found.dtype))
        if by_slot is None:
            return lax.psum(found, SEQUENCE)
        return lax.psum_scatter(found, SEQUENCE, scatter_dimension=1, tiled=True)

    return jax.shard_map(
        run,
        in_specs=(PartitionSpec(rows, SEQUENCE, None), PartitionSpec(rows, None)),
        out_specs=PartitionSpec(rows, by_slot, None),
        axis_names=set(automatic(*ROWS, SEQUENCE)),  # over tensor all have the same, and gradients must not be summed
        check_vma=False,
    )(hidden, positions)


def first_token(hidden: Float[Array, "batch tokens embed"]) -> Float[Array, "batch 1 embed"]:
    """Returns the vector of the first token of every row.

    Args:
      hidden: Of all tokens, or of the first alone.
    """
    if sequence_ways() == 1 or hidden.shape[1] == 1:
        return hidden[:, :1]
    return jnp.asarray(pick_tokens(hidden, jnp.zeros((hidden.shape[0], 1), jnp.int32)))
