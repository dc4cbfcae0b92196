"""Word, position and token type embeddings."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.core.precision import Precision
from flaxbert.errors import ShapeError
from flaxbert.nn.dropout import dropout
from flaxbert.nn.layers import Dense, Embed, LayerNorm


class Embeddings(nnx.Module):
    """The normalised sum of word, position and token type rows (Devlin et al., 2019, section 3).

    Args:
      config: Architecture; without token types where ``type_vocab_size`` is 0.
      execution: Precision.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        width, deviation = config.embedding_width, config.initializer_range
        dtype = Precision(execution.precision).compute_dtype
        self.config = config
        self.word = Embed(config.vocab_size, width, deviation, rngs)
        self.position = Embed(config.max_position_embeddings, width, deviation, rngs)
        if config.type_vocab_size:
            self.token_type = Embed(config.type_vocab_size, width, deviation, rngs)
        self.norm = LayerNorm(width, config.layer_norm_epsilon, dtype)
        if width != config.hidden_size:
            self.project = Dense(width, config.hidden_size, deviation, dtype, rngs)

    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        position_ids: Int[Array, "batch length"] | None,
        token_type_ids: Int[Array, "batch length"] | None,
        key: Any,
    ) -> Float[Array, "batch length embed"]:
        """Returns the embedded tokens.

        Raises:
          ShapeError: There are more tokens than positions.
        """
        summed = self.word(input_ids)
        if self.config.type_vocab_size:
            token_type_ids = jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            summed = summed + self.token_type(token_type_ids)
        summed = summed + self.position(self._position_rows(input_ids, position_ids))
        embedded = dropout(self.norm(summed), key, self.config.hidden_dropout_rate)
        return self.project(embedded) if hasattr(self, "project") else embedded

    def _position_rows(self, input_ids: jax.Array, position_ids: jax.Array | None) -> jax.Array:
        """Returns rows of the position embedding; with an offset, positions are counted over the tokens that are no padding."""
        config = self.config
        if position_ids is not None:
            return position_ids + jnp.asarray(config.position_offset, position_ids.dtype)
        if input_ids.shape[1] > config.max_length:
            raise ShapeError(
                f"An input of {input_ids.shape[1]} tokens is longer than the model's {config.max_length} positions; "
                "truncate it."
            )
        if not config.position_offset:
            return jnp.arange(input_ids.shape[1], dtype=jnp.int32)[None]
        real = (input_ids != config.pad_token_id).astype(jnp.int32)
        return jnp.cumsum(real, axis=1, dtype=jnp.int32) * real + jnp.int32(config.position_offset - 1)
