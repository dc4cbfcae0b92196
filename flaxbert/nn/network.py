"""The whole network of an encoder with the heads of one task."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from flaxbert.architecture import FIRST_TOKEN_TASKS, TASK_HEADS, Execution, ModelConfig
from flaxbert.core.precision import Precision
from flaxbert.nn.activations import get_activation
from flaxbert.nn.dropout import dropout, fold, key_words
from flaxbert.nn.embeddings import Embeddings
from flaxbert.nn.encoder import Encoder
from flaxbert.nn.heads import BERT_HEADS, HeadStyle, MaskedLanguageHead, Pooler
from flaxbert.nn.layers import Dense

_EMBEDDINGS, _ENCODER, _HEAD = range(3)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ModelOutput:
    """What a forward pass returns; fields that the task does not have are None.

    Attributes:
      logits: float32 scores of the task's head: ``[batch, labels]``, ``[batch, length, labels]`` or ``[batch, length, vocab]``.
      last_hidden_state: Token vectors after the last block, ``[batch, length, embed]``; None for tasks that read the first
        token only, unless hidden states were asked for.
      pooled: Vector of the whole input from the pooler, ``[batch, embed]``.
      next_sentence_logits: float32 scores of the next sentence head beside another head, ``[batch, 2]``.
      hidden_states: Token vectors after the embeddings and each block, where asked for.
    """

    logits: Any = None
    last_hidden_state: Any = None
    pooled: Any = None
    next_sentence_logits: Any = None
    hidden_states: Any = None


class Network(nnx.Module):
    """Embeddings, encoder and the heads of one task.

    Args:
      config: Architecture.
      task: A key of ``TASK_HEADS``.
      execution: How it is run.
      rngs: Source of keys for new weights.
      style: What the family builds differently in the heads.
    """

    def __init__(
        self, config: ModelConfig, task: str, execution: Execution, rngs: nnx.Rngs, style: HeadStyle = BERT_HEADS
    ) -> None:
        dtype = Precision(execution.precision).compute_dtype
        heads = TASK_HEADS[task]
        self.config = config
        self.task = task
        self.style = style
        self.embeddings = Embeddings(config, execution, rngs)
        self.encoder = Encoder(config, execution, rngs)
        if "classifier" in heads and "pooler" in heads and style.classifier_activation:
            width = config.hidden_size
            self.classifier_dense = Dense(width, width, config.initializer_range, dtype, rngs)
        elif "pooler" in heads or (not heads and config.has_pooler and style.has_pooler):
            self.pooler = Pooler(config, execution, rngs)
        if "classifier" in heads:
            self.classifier = Dense(config.hidden_size, config.num_labels, config.initializer_range, dtype, rngs)
        if "masked_lm" in heads:
            self.masked_lm = MaskedLanguageHead(config, execution, rngs, style)
        if "next_sentence" in heads:
            self.next_sentence = Dense(config.hidden_size, 2, config.initializer_range, dtype, rngs)

    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        attention_mask: Int[Array, "batch length"] | None = None,
        token_type_ids: Int[Array, "batch length"] | None = None,
        position_ids: Int[Array, "batch length"] | None = None,
        segment_ids: Int[Array, "batch length"] | None = None,
        dropout_key: Any = None,
        keep_hidden: bool = False,
    ) -> ModelOutput:
        """Runs the network.

        Args:
          input_ids: Token ids.
          attention_mask: 1 for real tokens, 0 for padding; None: all real.
          token_type_ids: 0 for the first text, 1 for the second; None: all 0.
          position_ids: Positions; None: 0, 1, 2…
          segment_ids: For packed rows: number of each token's segment from 1, 0 for padding; replaces attention_mask.
          dropout_key: A JAX key, or None for no dropout.
          keep_hidden: Whether to return the hidden states after every block.
        """
        packed = segment_ids is not None
        dropout_key = None if dropout_key is None else key_words(dropout_key)
        if segment_ids is None:
            segment_ids = jnp.ones_like(input_ids) if attention_mask is None else attention_mask
        embedded = self.embeddings(input_ids, position_ids, token_type_ids, fold(dropout_key, _EMBEDDINGS))
        first_only = self.task in FIRST_TOKEN_TASKS and not keep_hidden
        encoder_key = fold(dropout_key, _ENCODER)
        hidden, kept = self.encoder(embedded, segment_ids, packed, encoder_key, keep_hidden, first_only)
        output = self._apply_heads(hidden, kept, fold(dropout_key, _HEAD))
        return dataclasses.replace(output, last_hidden_state=None) if first_only else output

    def _apply_heads(self, hidden: jax.Array, kept: Any, key: Any) -> ModelOutput:
        config, heads = self.config, TASK_HEADS[self.task]
        pooled = self.pooler(hidden) if hasattr(self, "pooler") else None
        logits, next_sentence_logits = None, None
        if "masked_lm" in heads:
            logits = self.masked_lm(hidden, self.embeddings.word.embedding.get_value())
        if "classifier" in heads:
            rate = config.classifier_dropout_rate
            if rate is None or (self.style.tokens_drop_as_blocks and "pooler" not in heads):
                rate = config.hidden_dropout_rate
            features = hidden if pooled is None else pooled
            if hasattr(self, "classifier_dense"):
                features = self._classifier_features(hidden[:, 0], key, rate)
            logits = self.classifier(dropout(features, key, rate)).astype(jnp.float32)
        if "next_sentence" in heads and pooled is not None:
            next_sentence_logits = self.next_sentence(pooled).astype(jnp.float32)
        if self.task == "next-sentence-prediction":
            logits, next_sentence_logits = next_sentence_logits, None
        return ModelOutput(
            logits=logits,
            last_hidden_state=hidden,
            pooled=pooled,
            next_sentence_logits=next_sentence_logits,
            hidden_states=kept,
        )

    def _classifier_features(self, first: jax.Array, key: Any, rate: float) -> jax.Array:
        if self.style.drops_classifier_input:
            first = dropout(first, fold(key, 0), rate)
        return get_activation(self.style.classifier_activation)(self.classifier_dense(first))
