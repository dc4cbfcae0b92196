"""Word, position and token type embeddings."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.core.precision import Precision
from flaxbert.errors import ShapeError
from flaxbert.nn.dropout import dropout
from flaxbert.nn.layers import Embed, LayerNorm


class Embeddings(nnx.Module):
    """The normalised sum of word, position and token type rows (Devlin et al., 2019, section 3).

    Args:
      config: Architecture; without token types where ``type_vocab_size`` is 0.
      execution: Precision.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        width, deviation = config.hidden_size, config.initializer_range
        self.config = config
        self.word = Embed(config.vocab_size, width, deviation, rngs)
        self.position = Embed(config.max_position_embeddings, width, deviation, rngs)
        if config.type_vocab_size:
            self.token_type = Embed(config.type_vocab_size, width, deviation, rngs)
        self.norm = LayerNorm(width, config.layer_norm_epsilon, Precision(execution.precision).compute_dtype)

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
        if position_ids is None:
            if input_ids.shape[1] > self.config.max_position_embeddings:
                raise ShapeError(
                    f"An input of {input_ids.shape[1]} tokens is longer than the model's "
                    f"{self.config.max_position_embeddings} positions; truncate it."
                )
            position_ids = jnp.arange(input_ids.shape[1], dtype=jnp.int32)[None]
        summed = self.word(input_ids)
        if self.config.type_vocab_size:
            token_type_ids = jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            summed = summed + self.token_type(token_type_ids)
        summed = summed + self.position(position_ids)
        return dropout(self.norm(summed), key, self.config.hidden_dropout_rate)
