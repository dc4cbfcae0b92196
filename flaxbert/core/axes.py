"""The names of all axes, in one place, each with what gives its size.

The same words stand in signatures, sharding rules, documentation and errors. A parameter axis has a size that the model
configuration gives; an activation axis (``batch``, ``length``) has a size that the input gives.
"""

from typing import Any

Size = Any
"""A number of entries: an int or, while a network is traced for any batch and length, an expression of symbols (``jax.export``)."""

BATCH = "batch"
LENGTH = "length"
EMBED = "embed"
EMBEDDING = "embedding"
HEADS = "heads"
HEAD_DIM = "head_dim"
ATTENTION = "attention"
MLP = "mlp"
VOCAB = "vocab"
POSITIONS = "positions"
TOKEN_TYPES = "token_types"
LAYERS = "layers"
LABELS = "labels"
POOLED = "pooled"
PREDICTED = "predicted"
NEXT_SENTENCE = "next_sentence"
SPAN_ENDS = "span_ends"
SCORES = "scores"
RELATION = "relation"
PROJECTED = "projected"
BLOCKS = "blocks"

ACTIVATION_AXES: dict[str, str] = {
    BATCH: "examples of one step",
    LENGTH: "tokens of one example, padding included",
}
"""Axes whose size the input gives, with their meaning."""

PARAMETER_AXES: dict[str, str] = {
    EMBED: "hidden_size",
    EMBEDDING: "embedding_width",
    HEADS: "num_attention_heads",
    HEAD_DIM: "head_dim",
    ATTENTION: "attention_size",
    MLP: "intermediate_size",
    VOCAB: "vocab_size",
    POSITIONS: "max_position_embeddings",
    TOKEN_TYPES: "type_vocab_size",
    LAYERS: "num_hidden_layers",
    LABELS: "num_labels",
    POOLED: "hidden_size",
    PREDICTED: "embedding_width",
    NEXT_SENTENCE: "num_next_sentence_labels",
    SPAN_ENDS: "num_span_ends",
    SCORES: "num_scores",
    RELATION: "relation_size",
    PROJECTED: "projection_size",
}
"""Axes of parameters, with the configuration field (or property) that gives the size.

``attention`` is ``heads`` and ``head_dim`` flattened, ``pooled`` is the output axis of the pooler,
``embedding`` the width of the tables (that of ``embed`` unless factorised), ``predicted`` the same width in the masked language
head, kept whole.
"""


def axis_size(axis: str, config: Any) -> int:
    """Returns the size that a configuration gives to a parameter axis.

    Args:
      axis: One of ``PARAMETER_AXES``.
      config: Model configuration with the field that the axis names.

    Returns:
      Number of entries along the axis.

    Raises:
      KeyError: The axis is not a parameter axis.
    """
    return int(getattr(config, PARAMETER_AXES[axis]))
