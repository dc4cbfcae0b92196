"""Word, position and token type embeddings."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.core.precision import Precision
from flaxbert.errors import ShapeError
from flaxbert.nn.dropout import dropout
from flaxbert.nn.layers import Dense, Embed, LayerNorm
from flaxbert.nn.tokens import Tokens


def sinusoids(rows: int, width: int) -> Float32[np.ndarray, "positions embed"]:
    """Returns sines at even and cosines at odd columns, in frequencies from 1 to 1/10000 (Vaswani et al., 2017, section 3.5).

    Args:
      rows: Number of positions.
      width: Number of columns.
    """
    columns = np.arange(width)
    angles = np.arange(rows)[:, None] * np.exp(-math.log(10000.0) * (2 * (columns // 2)) / width)
    return np.where(columns % 2 == 0, np.sin(angles), np.cos(angles)).astype(np.float32)


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
        if config.position_embedding == "learned":
            self.position = Embed(config.max_position_embeddings, width, deviation, rngs)
        if config.type_vocab_size:
            self.token_type = Embed(config.type_vocab_size, width, deviation, rngs)
        self.norm = LayerNorm(width, config.layer_norm_epsilon, dtype)
        if width != config.hidden_size:
            self.project = Dense(width, config.hidden_size, deviation, dtype, rngs)

    def __call__(self, tokens: Tokens, key: Any) -> Float[Array, "batch length embed"]:
        """Returns the embedded tokens.

        Raises:
          ShapeError: There are more tokens than positions.
        """
        embedded = dropout(self.norm(self.sum_rows(tokens)), key, self.config.hidden_dropout_rate)
        return self.project(embedded) if hasattr(self, "project") else embedded

    def sum_rows(self, tokens: Tokens) -> Float[Array, "batch length embedding"]:
        """Returns the sum of all rows of each token, float32.

        Args:
          tokens: The tokens.

        Raises:
          ShapeError: There are more tokens than positions.
        """
        config = self.config
        summed = self.word(tokens.input_ids)
        if config.type_vocab_size:
            types = tokens.token_type_ids
            summed = summed + self.token_type(jnp.zeros_like(tokens.input_ids) if types is None else types)
        if config.position_embedding == "none":
            return summed
        rows = self._position_rows(tokens.input_ids, tokens.position_ids)
        if config.position_embedding == "learned":
            return summed + self.position(rows)
        table = jnp.asarray(sinusoids(config.max_position_embeddings, config.embedding_width))
        return summed + jnp.take(table, rows, axis=0)

    def _position_rows(
        self, input_ids: Int[Array, "batch length"], position_ids: Int[Array, "batch length"] | None
    ) -> jax.Array:
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
