"""The tokens of a batch as embeddings and blocks see them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from flaxbert.core.axes import Size
from flaxbert.nn.split_length import first_token, pick_tokens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """What is known of tokens beside their vectors.

    Attributes:
      input_ids: Token ids, int ``[batch, length]``.
      segment_ids: 0 for padding, else the number of the token's segment, int ``[batch, length]``; an attention mask is the
        case of one segment.
      token_type_ids: 0 for the first text, 1 for the second, int ``[batch, length]``; None: all 0.
      position_ids: Positions from 0, int ``[batch, length]``; None: in order.
      task_type_ids: Numbers of tasks, int ``[batch, length]``, for families that embed them; None: all 0.
      masked_positions: Places of the tokens that a masked language head scores, int ``[batch, slots]``; None: all.
      first_positions: Place of the first token of each segment, int ``[batch, segments]``, for heads that read it of every
        segment of a packed row; None: the first token of the row.
      packed: Whether rows hold several segments, so that a token sees its own segment only.
    """

    input_ids: Any
    segment_ids: Any
    token_type_ids: Any = None
    position_ids: Any = None
    task_type_ids: Any = None
    masked_positions: Any = None
    first_positions: Any = None
    packed: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def length(self) -> Size:
        """Tokens of a row, padding included."""
        return self.input_ids.shape[1]

    def predicted(self, hidden: jax.Array) -> jax.Array:
        """Returns the vectors that a masked language head scores, ``[batch, slots or length, embed]``.

        Args:
          hidden: Of all tokens, ``[batch, length, embed]``.
        """
        return hidden if self.masked_positions is None else pick_tokens(hidden, self.masked_positions)

    def first_of_segments(self, hidden: jax.Array) -> jax.Array:
        """Returns the vector of the first token of every segment as rows of one token, ``[batch * segments, 1, embed]``.

        Args:
          hidden: Of all tokens, ``[batch, length, embed]``.
        """
        return pick_tokens(hidden, self.first_positions).reshape(-1, 1, hidden.shape[-1])

    def first_of_own_segment(self, hidden: jax.Array) -> jax.Array:
        """Returns for every token the vector of the first token of its segment, ``[batch, length or 1, embed]``.

        Args:
          hidden: Of all tokens, ``[batch, length, embed]``; in packed rows, positions count from the first token of each segment.
        """
        if not self.packed:
            return first_token(hidden)[:, :1]
        places = jnp.arange(self.length, dtype=jnp.int32)[None] - self.positions()
        return pick_tokens(hidden, jnp.broadcast_to(jnp.maximum(places, 0), self.input_ids.shape))

    def positions(self) -> jax.Array:
        """Returns positions from 0, int32 ``[batch or 1, length]``."""
        if self.position_ids is None:
            return jnp.arange(self.length, dtype=jnp.int32)[None]
        return self.position_ids.astype(jnp.int32)
