"""Heads that DeBERTa builds otherwise than BERT."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.core.precision import Precision
from flaxbert.nn.activations import get_activation
from flaxbert.nn.disentangled_attention import DisentangledOptions
from flaxbert.nn.dropout import dropout
from flaxbert.nn.heads import ReplacedTokenHead
from flaxbert.nn.layers import Dense, LayerNorm


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


class NormedReplacedTokenHead(ReplacedTokenHead):
    """ELECTRA's head over normalised vectors (He et al., 2021).

    Args:
      config: Architecture.
      execution: Precision.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        super().__init__(config, execution, rngs)
        dtype = Precision(execution.precision).compute_dtype
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_epsilon, dtype)

    def __call__(self, hidden: Float[Array, "batch length embed"]) -> Float[Array, "batch length"]:
        """Returns float32 scores; above 0 means replaced."""
        return super().__call__(self.norm(hidden))
