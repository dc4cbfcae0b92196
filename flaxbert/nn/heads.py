"""Task heads on top of the encoder, and pooling of token vectors into sentence vectors."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.core.contraction import contract
from flaxbert.core.precision import Precision
from flaxbert.errors import ConfigError
from flaxbert.nn.activations import get_activation
from flaxbert.nn.dropout import dropout, fold
from flaxbert.nn.layers import Dense, LayerNorm
from flaxbert.nn.split_length import first_token


@dataclasses.dataclass(frozen=True)
class HeadStyle:
    """What families build differently in the same heads.

    Attributes:
      classifier_activation: Activation of a dense layer over the first token, before the classifier of whole inputs;
        ``hidden_act`` for that of the blocks; empty: the pooler stands there.
      choice_activation: The same for multiple choice.
      drops_classifier_input: Whether dropout comes before the dense layer of the classifier of whole inputs too.
      tokens_drop_as_blocks: Whether dropout before the classifier of tokens has the rate of the blocks.
      drops_span_input: Whether dropout of the blocks' rate comes before the question answering head.
      masked_lm_activation: Activation of the masked language head; empty: that of the blocks.
      has_pooler: Whether the family's bare encoder can carry a pooler.
      orders_sentences: Whether pre-training judges the order of sentences instead of guessing the next one.
    """

    classifier_activation: str = ""
    choice_activation: str = ""
    drops_classifier_input: bool = False
    tokens_drop_as_blocks: bool = False
    drops_span_input: bool = False
    masked_lm_activation: str = ""
    has_pooler: bool = True
    orders_sentences: bool = False

    def dense_activation(self, task: str) -> str:
        """Returns the activation of the dense layer before a classifier of whole inputs; empty where the pooler stands.

        Args:
          task: Canonical task name.
        """
        return self.choice_activation if task == "multiple-choice" else self.classifier_activation


BERT_HEADS = HeadStyle()


class Pooler(nnx.Module):
    """``tanh(dense(first token))``, BERT's vector of the whole input.

    Args:
      config: Architecture.
      execution: Precision.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        dtype = Precision(execution.precision).compute_dtype
        self.dense = Dense(config.hidden_size, config.hidden_size, config.initializer_range, dtype, rngs)

    def __call__(self, hidden: Float[Array, "batch length embed"]) -> Float[Array, "batch pooled"]:
        """Returns one vector per input."""
        return jnp.tanh(self.dense(first_token(hidden)[:, 0]))


class MaskedLanguageHead(nnx.Module):
    """Scores every word of the vocabulary for given positions; the last matrix is the word embedding.

    Args:
      config: Architecture.
      execution: Precision.
      rngs: Source of keys for new weights.
      style: For the activation.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs, style: HeadStyle) -> None:
        dtype = Precision(execution.precision).compute_dtype
        self.activation_name = style.masked_lm_activation or config.hidden_act
        self.compute_dtype = dtype
        width = config.embedding_width
        self.transform = Dense(config.hidden_size, width, config.initializer_range, dtype, rngs)
        self.norm = LayerNorm(width, config.layer_norm_epsilon, dtype)
        self.bias = nnx.Param(jnp.zeros((config.vocab_size,), jnp.float32))

    def __call__(self, hidden: Float[Array, "*batch embed"], table: Any) -> Float[Array, "*batch vocab"]:
        """Returns float32 scores; ``table`` is the leaf of the word embedding."""
        hidden = self.norm(get_activation(self.activation_name)(self.transform(hidden)))
        return contract(hidden, table, compute_dtype=self.compute_dtype, transposed=True) + self.bias.get_value()


class ReplacedTokenHead(nnx.Module):
    """Scores how likely each token was replaced (Clark et al., 2020, section 2).

    Args:
      config: Architecture.
      execution: Precision.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        dtype, deviation = Precision(execution.precision).compute_dtype, config.initializer_range
        self.activation_name = config.hidden_act
        self.dense = Dense(config.hidden_size, config.hidden_size, deviation, dtype, rngs)
        self.score = Dense(config.hidden_size, 1, deviation, dtype, rngs)

    def __call__(self, hidden: Float[Array, "batch length embed"]) -> Float[Array, "batch length"]:
        """Returns float32 scores; above 0 means replaced."""
        return self.score(get_activation(self.activation_name)(self.dense(hidden)))[..., 0].astype(jnp.float32)


class RelationHead(nnx.Module):
    """Classifies how two marked entities relate, from their mean vectors and the first token (Wu and He, 2019).

    Args:
      config: Architecture.
      execution: Precision.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        dtype, deviation = Precision(execution.precision).compute_dtype, config.initializer_range
        width = config.hidden_size
        self.first = Dense(width, width, deviation, dtype, rngs)
        self.entity = Dense(width, width, deviation, dtype, rngs)
        self.classifier = Dense(config.relation_size, config.num_labels, deviation, dtype, rngs)

    def __call__(
        self, hidden: Float[Array, "batch length embed"], entity_mask: Int[Array, "batch length"], key: Any, rate: float
    ) -> Float[Array, "batch labels"]:
        """Returns float32 scores.

        Args:
          hidden: Token vectors.
          entity_mask: 1 for tokens of the first entity, 2 for those of the second, else 0.
          key: Dropout key, or None.
          rate: Dropout rate.
        """
        means = [pool(hidden, (entity_mask == number).astype(jnp.int32), "mean") for number in (1, 2)]
        vectors = [first_token(hidden)[:, 0], *(mean.astype(hidden.dtype) for mean in means)]
        layers = [self.first, self.entity, self.entity]
        parts = [
            layer(jnp.tanh(dropout(vector, fold(key, index), rate)))
            for index, (layer, vector) in enumerate(zip(layers, vectors, strict=True))
        ]
        joined = dropout(jnp.concatenate(parts, axis=-1), fold(key, 3), rate)
        return self.classifier(joined).astype(jnp.float32)


class ProjectionHead(nnx.Module):
    """Narrow token vectors of length 1 for late interaction (Khattab and Zaharia, 2020, section 3.2).

    Args:
      config: Architecture.
      execution: Precision.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        dtype = Precision(execution.precision).compute_dtype
        width, deviation = config.projection_size, config.initializer_range
        self.dense = Dense(config.hidden_size, width, deviation, dtype, rngs, use_bias=False)

    def __call__(self, hidden: Float[Array, "batch length embed"]) -> Float[Array, "batch length projected"]:
        """Returns float32 token vectors."""
        vectors = self.dense(hidden).astype(jnp.float32)
        length = jnp.sqrt(jnp.sum(jnp.square(vectors), axis=-1, keepdims=True))
        return vectors / jnp.maximum(length, jnp.float32(1e-12))


def pool(
    hidden: Float[Array, "batch length embed"], attention_mask: Int[Array, "batch length"], mode: str
) -> Float[Array, "batch embed"]:
    """Turns token vectors into one float32 vector per input.

    Args:
      hidden: Token vectors.
      attention_mask: 1 for real tokens, 0 for padding.
      mode: cls (first token), mean, max, mean_sqrt_len_tokens, weightedmean (weights 1, 2, 3…) or lasttoken.

    Returns:
      Sentence vectors; an input without real tokens gives zeros for the means.

    Raises:
      ConfigError: The mode is unknown.
    """
    hidden = hidden.astype(jnp.float32)
    mask = attention_mask.astype(jnp.float32)[:, :, None]
    if mode == "cls":
        return first_token(hidden)[:, 0]
    if mode == "max":
        return jnp.max(jnp.where(mask > 0, hidden, jnp.float32(-1e9)), axis=1)
    if mode == "lasttoken":
        positions = jnp.arange(hidden.shape[1], dtype=jnp.int32)[None] * (attention_mask > 0).astype(jnp.int32)
        return jnp.take_along_axis(hidden, jnp.max(positions, axis=1)[:, None, None], axis=1)[:, 0]
    if mode == "weightedmean":
        mask = mask * jnp.arange(1, hidden.shape[1] + 1, dtype=jnp.float32)[None, :, None]
    elif mode not in ("mean", "mean_sqrt_len_tokens"):
        raise ConfigError(
            f"Unknown pooling '{mode}'; choose cls, mean, max, mean_sqrt_len_tokens, weightedmean or lasttoken."
        )
    total = jnp.maximum(jnp.sum(mask, axis=1), jnp.float32(1e-9))
    divisor = jnp.sqrt(total) if mode == "mean_sqrt_len_tokens" else total
    return jnp.sum(hidden * mask, axis=1) / divisor
