"""Heads that DeBERTa builds otherwise than BERT."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.core.precision import Precision
from flaxbert.nn.activations import get_activation
from flaxbert.nn.disentangled_attention import DisentangledOptions
from flaxbert.nn.dropout import dropout
from flaxbert.nn.layers import Dense, LayerNorm
from flaxbert.nn.split_length import first_token, pick_tokens
from flaxbert.nn.tokens import Tokens


class ContextPooler(nnx.Module):
    """``activation(dense(dropout(first token)))``.

    Args:
      config: Architecture.
      execution: Precision.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        dtype = Precision(execution.precision).compute_dtype
        self.options = config.own(DisentangledOptions)
        self.dense = Dense(config.hidden_size, config.hidden_size, config.initializer_range, dtype, rngs)

    def __call__(self, hidden: Float[Array, "batch tokens embed"], key: Any) -> Float[Array, "batch pooled"]:
        """Returns one vector per input."""
        first = dropout(hidden[:, 0], key, self.options.pooler_dropout)
        return get_activation(self.options.pooler_hidden_act)(self.dense(first))


class ContextReplacedTokenHead(nnx.Module):
    """Scores how likely each token was replaced, from its vector and that of the first token of its text (He et al., 2021).

    Args:
      config: Architecture.
      execution: Precision.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        dtype, deviation = Precision(execution.precision).compute_dtype, config.initializer_range
        self.activation_name = config.hidden_act
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_epsilon, dtype)
        self.dense = Dense(config.hidden_size, config.hidden_size, deviation, dtype, rngs)
        self.score = Dense(config.hidden_size, 1, deviation, dtype, rngs)

    def __call__(self, hidden: Float[Array, "batch length embed"], tokens: Tokens) -> Float[Array, "batch length"]:
        """Returns float32 scores; above 0 means replaced.

        Args:
          hidden: Token vectors.
          tokens: The tokens; in packed rows, positions count from the first token of each segment.
        """
        if tokens.packed:
            places = jnp.arange(tokens.length, dtype=jnp.int32)[None] - tokens.positions()
            first = pick_tokens(hidden, jnp.broadcast_to(jnp.maximum(places, 0), tokens.input_ids.shape))
        else:
            first = first_token(hidden)[:, :1]
        activated = get_activation(self.activation_name)(self.dense(self.norm(first + hidden)))
        return self.score(activated)[..., 0].astype(jnp.float32)
