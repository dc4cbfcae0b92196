"""How much a layer multiplies: what the share of the device's peak (MFU) is computed from, and nothing else."""

import dataclasses

import numpy as np
from jaxtyping import Float, Num

from flaxbert.architecture import ModelConfig


@dataclasses.dataclass(frozen=True)
class LayerWork:
    """Multiplications of one layer's forward pass, each with its addition. Elementwise work is left out.

    Attributes:
      per_token: For every token, up to queries, keys and values.
      after_attention: For every token, what comes after its attention; the last layer may do that for one token alone.
      per_pair: For two tokens that see each other: a score and a weighted sum.
      radius: Tokens that are seen on either side; None: all of a text.
      per_distance: For every token and each distance that it can be away from another, where distances are scored.
      num_distances: Distances that are told apart.
      per_row: Once for all texts and each distance that occurs: projections of the table of distances.
    """

    per_token: float
    after_attention: float
    per_pair: float
    radius: int | None = None
    per_distance: float = 0.0
    num_distances: int = 0
    per_row: float = 0.0

    def pairs(self, lengths: Num[np.ndarray, "texts"]) -> Float[np.ndarray, "texts"]:
        """Returns how many pairs of tokens see each other in texts of given lengths.

        Args:
          lengths: Tokens of each text.
        """
        whole = lengths.astype(np.float64) ** 2
        if self.radius is None:
            return whole
        window = lengths * (2.0 * self.radius + 1.0) - self.radius * (self.radius + 1.0)
        return np.where(lengths > self.radius + 1, window, whole)

    def forward(self, lengths: Num[np.ndarray, "texts"], finished: float) -> float:
        """Returns the multiplications of a forward pass over texts.

        Args:
          lengths: Tokens of each text.
          finished: Tokens whose layer is computed to its end.
        """
        tokens = float(lengths.sum())
        distances = np.minimum(2.0 * lengths - 1.0, self.num_distances)
        return (
            self.per_token * tokens
            + self.after_attention * finished
            + self.per_pair * float(self.pairs(lengths).sum())
            + self.per_distance * float((lengths * distances).sum())
            + self.per_row * float(distances.max(initial=0.0))
        )


def standard_layer(config: ModelConfig, feed_forward_matrices: int = 2) -> LayerWork:
    """Returns the work of a layer of BERT, which most families have.

    Args:
      config: Architecture.
      feed_forward_matrices: Matrices of the feed-forward layer: 3 where it has a gate.
    """
    hidden, attention = config.hidden_size, config.attention_size
    return LayerWork(
        per_token=3.0 * hidden * attention,
        after_attention=float(hidden * attention + feed_forward_matrices * hidden * config.intermediate_size),
        per_pair=2.0 * attention,
    )


def standard_layers(config: ModelConfig, task: str) -> tuple[LayerWork, ...]:
    """Returns the work of every layer of BERT.

    Args:
      config: Architecture.
      task: Not used.
    """
    del task
    return tuple(standard_layer(layer) for layer in config.layer_sizes)
