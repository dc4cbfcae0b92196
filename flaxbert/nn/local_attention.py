"""Attention within a window around each token: masked scores for short inputs, blocks of tokens for long ones."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flaxbert.core.axes import Size
from flaxbert.core.sharding import SEQUENCE
from flaxbert.nn.attention import HIDDEN_BIAS
from flaxbert.nn.dropout import MaskPart, key_words
from flaxbert.nn.rotary import Rotation
from flaxbert.nn.softmax_attention import softmax_attention
from flaxbert.nn.split_length import mix_near_over_devices, mix_over_devices, sequence_ways
from flaxbert.nn.tokens import Tokens

SMALLEST_BLOCK = 128
"""Fewer queries at a time would be small products; with a smaller window most of their scores are hidden."""

LENGTH_OF_BLOCKS = 4
"""Blocks pay from inputs of so many blocks on; below, masked scores of all pairs are as fast."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Window:
    """What layers with local attention share.

    Attributes:
      rotation: Angles of the tokens, block by block where there are blocks.
      bias: float32, 0 where a key is visible, else ``HIDDEN_BIAS``: ``[batch, 1, length, length]`` or, with blocks,
        ``[batch * blocks, 1, block, block + 2 * radius]``; None where the window hides nothing.
      block: Tokens of a block; 0 without blocks.
      radius: Tokens that are seen on either side.
      is_split: Whether the tokens of a row lie on several devices, so that each device makes its own bias.
    """

    rotation: Rotation
    bias: Any
    block: int = dataclasses.field(default=0, metadata={"static": True})
    radius: int = dataclasses.field(default=0, metadata={"static": True})
    is_split: bool = dataclasses.field(default=False, metadata={"static": True})


def choose_block(length: Size, radius: int) -> int:
    """Returns the tokens of a block, or 0 where all pairs are scored and masked instead.

    Args:
      length: Tokens of a row.
      radius: Tokens that are seen on either side.
    """
    if not isinstance(length, int):  # symbolic, as exports are traced
        return 0
    block = max(2 * radius, SMALLEST_BLOCK)
    return block if length >= LENGTH_OF_BLOCKS * block else 0


def visible_bias(
    query_ids: Int[Array, "batch queries"],
    key_ids: Int[Array, "batch length"],
    first_key: Any,
    radius: int,
    packed: bool,
) -> Float[Array, "batch 1 queries length"]:
    """Returns 0 where a key is visible, ``HIDDEN_BIAS`` where it is hidden.

    Args:
      query_ids: Segments of the queries, 0 for padding.
      key_ids: Segments of the keys.
      first_key: Place of the first key, counted from the first query; a number or a scalar array.
      radius: Tokens that are seen on either side.
      packed: Whether there can be several segments.
    """
    places = jnp.arange(query_ids.shape[1], dtype=jnp.int32)
    key_places = jnp.arange(key_ids.shape[1], dtype=jnp.int32) + jnp.asarray(first_key, jnp.int32)
    near = jnp.abs(places[:, None] - key_places[None]) <= radius
    keys = key_ids[:, None, None, :]
    visible = near & (keys != 0)
    if packed:
        visible = visible & (keys == query_ids[:, None, :, None])
    return jnp.where(visible, jnp.float32(0.0), jnp.float32(HIDDEN_BIAS))


def make_window(
    segment_ids: Int[Array, "batch length"], packed: bool, turned: Rotation, radius: int, block: int | None = None
) -> Window:
    """Returns what all layers with local attention need of a batch.

    Args:
      segment_ids: 0 for padding, else the number of the token's segment.
      packed: Whether there can be several segments.
      turned: Angles of the tokens.
      radius: Tokens that are seen on either side.
      block: Tokens of a block, at least ``radius``; 0 for none; None chooses.
    """
    batch, length = segment_ids.shape
    block = choose_block(length, radius) if block is None else block
    if isinstance(length, int) and radius >= length - 1:
        return Window(turned, None)
    if sequence_ways() > 1:
        return Window(turned, None, 0, radius, is_split=True)
    if not block:
        return Window(turned, visible_bias(segment_ids, segment_ids, 0, radius, packed), 0, radius)
    ids = split_blocks(segment_ids, block)
    around = with_neighbours(ids[:, None, :, None], batch, radius)[:, 0, :, 0]
    split = []
    for angles in (turned.cosine, turned.sine):
        by_block = split_blocks(angles[:, 0], block)
        if angles.shape[0] != batch:
            by_block = jnp.tile(by_block, (batch, 1, 1))
        split.append(by_block[:, None])
    return Window(Rotation(*split), visible_bias(ids, around, -radius, radius, packed), block, radius)


def split_blocks(values: Array, block: int) -> jax.Array:
    """Returns ``[batch * blocks, block, …]`` of ``[batch, length, …]``; zeros fill the last block.

    Args:
      values: The array.
      block: Tokens of a block.
    """
    batch, length, *rest = values.shape
    missing = -length % block
    if missing:
        values = jnp.pad(values, ((0, 0), (0, missing), *((0, 0) for _ in rest)))
    return values.reshape(batch * ((length + missing) // block), block, *rest)


def join_blocks(values: Array, batch: int, length: int) -> jax.Array:
    """Returns ``[batch, length, …]`` of ``[batch * blocks, block, …]``, the inverse of ``split_blocks``.

    Args:
      values: The array.
      batch: Rows before the split.
      length: Tokens before the split.
    """
    return values.reshape(batch, -1, *values.shape[2:])[:, :length]


def with_neighbours(values: Array, batch: int, radius: int, edges: tuple[Array, Array] | None = None) -> jax.Array:
    """Returns ``[batch * blocks, heads, block + 2 * radius, …]``: every block with the tokens on either side of it.

    Args:
      values: ``[batch * blocks, heads, block, …]``.
      batch: Rows before the split into blocks.
      radius: Tokens to add on either side, at most ``block``.
      edges: What stands before the first block and after the last, ``[batch, heads, radius, …]``; None: zeros.
    """
    rows = values.reshape(batch, -1, *values.shape[1:])
    size = rows.shape[3]
    before, after = rows[:, :-1, :, size - radius :], rows[:, 1:, :, :radius]
    nothing = jnp.zeros((batch, *before.shape[2:]), values.dtype)
    left, right = (nothing, nothing) if edges is None else edges
    before = jnp.concatenate([left[:, None], before], axis=1)
    after = jnp.concatenate([after, right[:, None]], axis=1)
    joined = jnp.concatenate([before, rows, after], axis=3)
    return joined.reshape(values.shape[0], *joined.shape[2:])


def attend_near(
    query: Float[Array, "batch heads length head_dim"],
    key: Float[Array, "batch heads length head_dim"],
    value: Float[Array, "batch heads length head_dim"],
    tokens: Tokens,
    radius: int,
    rate: float,
    dropout_key: Any,
) -> Float[Array, "batch heads length head_dim"]:
    """Mixes the values within a window where the tokens of a row lie on several devices.

    A device fetches ``radius`` tokens from each of the two beside it. Where weights are dropped, or the window reaches beyond these
    two, it gathers whole rows instead.

    Args:
      query: Queries, turned.
      key: Keys, turned.
      value: Values.
      tokens: Which tokens see each other.
      radius: Tokens that are seen on either side.
      rate: Share of dropped weights where there is a dropout key.
      dropout_key: Dropout key, or None.

    Returns:
      The mixed values.
    """
    words = key_words(dropout_key) if dropout_key is not None and rate > 0.0 else None
    if words is None and radius <= query.shape[2] // sequence_ways():
        mix_near = functools.partial(_mix_near, radius, tokens.packed)
        return mix_near_over_devices(mix_near, query, key, value, tokens.segment_ids, radius)
    mix = functools.partial(_mix_masked, radius, tokens.packed, rate)
    return mix_over_devices(mix, query, key, value, tokens.segment_ids, None, words)


def _mix_masked(
    radius: int,
    packed: bool,
    rate: float,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_ids: jax.Array,
    key_ids: jax.Array,
    position_scores: None,
    part: MaskPart | None,
) -> jax.Array:
    """Mixes over whole rows, all pairs scored and masked."""
    first_query = jax.lax.axis_index(SEQUENCE).astype(jnp.int32) * query.shape[2]
    bias = visible_bias(query_ids, key_ids, -first_query, radius, packed)
    return softmax_attention(query, key, value, bias, part, rate, position_scores=position_scores)


def _mix_near(
    radius: int,
    packed: bool,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    edges: tuple[tuple[jax.Array, jax.Array], ...],
) -> jax.Array:
    """Mixes over one device's tokens and those at its edges, in blocks where there are enough tokens."""
    batch, _, length, _ = query.shape
    block = choose_block(length, radius)
    block = block if block and length % block == 0 else length

    def cut(values: jax.Array) -> jax.Array:
        return jnp.swapaxes(split_blocks(jnp.swapaxes(values, 1, 2), block), 1, 2)

    key, value = (
        with_neighbours(cut(array), batch, radius, ends) for array, ends in zip((key, value), edges[:2], strict=True)
    )
    ids, ends = split_blocks(segment_ids, block), tuple(end[:, None, :, None] for end in edges[2])
    around = with_neighbours(ids[:, None, :, None], batch, radius, (ends[0], ends[1]))[:, 0, :, 0]
    bias = visible_bias(ids, around, -radius, radius, packed)
    mixed = jnp.asarray(softmax_attention(cut(query), key, value, bias, None, 0.0))
    return jnp.swapaxes(join_blocks(jnp.swapaxes(mixed, 1, 2), batch, length), 1, 2)
