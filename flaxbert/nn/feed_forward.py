"""The position-wise feed-forward layer."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.core.axes import Size
from flaxbert.core.precision import Precision
from flaxbert.nn.activations import get_activation
from flaxbert.nn.dropout import dropout, fold
from flaxbert.nn.layers import Dense, LayerNorm


class FeedForward(nnx.Module):
    """``norm(hidden + dropout(down(activation(up(hidden)))))`` (Vaswani et al., 2017, section 3.3).

    Args:
      config: Architecture.
      execution: Precision.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        dtype = Precision(execution.precision).compute_dtype
        self.config = config
        self.up = Dense(config.hidden_size, config.intermediate_size, config.initializer_range, dtype, rngs)
        self.down = Dense(config.intermediate_size, config.hidden_size, config.initializer_range, dtype, rngs)
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_epsilon, dtype)

    def __call__(
        self, hidden: Float[Array, "batch length embed"], key: Any, num_rows: Size = 0
    ) -> Float[Array, "batch length embed"]:
        """Returns the new hidden states; ``num_rows`` as for ``keep_mask``, where there are those of the first token only."""
        wide = get_activation(self.config.hidden_act)(self.up(hidden))
        return self.norm(hidden + dropout(self.down(wide), fold(key, 2), self.config.hidden_dropout_rate, num_rows))
