"""The whole network of an encoder with the heads of one task."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from flaxbert.architecture import FIRST_TOKEN_TASKS, TASK_HEADS, Execution, ModelConfig
from flaxbert.core.axes import Size
from flaxbert.core.precision import Precision
from flaxbert.errors import ConfigError, ShapeError
from flaxbert.nn.activations import get_activation
from flaxbert.nn.attention_capture import AttentionInputs, collecting
from flaxbert.nn.dropout import dropout, fold, key_words
from flaxbert.nn.embeddings import Embeddings
from flaxbert.nn.encoder import Encoder
from flaxbert.nn.heads import (
    BERT_HEADS,
    HeadStyle,
    MaskedLanguageHead,
    Pooler,
    ProjectionHead,
    RelationHead,
    ReplacedTokenHead,
)
from flaxbert.nn.layers import Dense
from flaxbert.nn.split_length import first_token
from flaxbert.nn.tokens import Tokens

_EMBEDDINGS, _ENCODER, _HEAD = range(3)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ModelOutput:
    """What a forward pass returns; fields that the task does not have are None.

    Attributes:
      logits: float32 scores of the task's head: ``[batch, labels]``, ``[batch, choices]``, ``[batch, length]`` (replaced
        tokens), ``[batch, length, labels]``, ``[batch, length, 2]`` (start and end of an answer), ``[batch, length, vocab]``
        (``[batch, slots, vocab]`` where masked positions are given);
        for late interaction the token vectors ``[batch, length, projected]``.
      last_hidden_state: Token vectors after the last block, ``[batch, length, embed]``; None for tasks that read the first
        token only, unless hidden states were asked for.
      pooled: Vector of the whole input from the pooler, ``[batch, embed]``.
      next_sentence_logits: float32 scores of the next sentence head, or of sentence order, beside another head, ``[batch, 2]``;
        of every segment, ``[batch, segments, 2]``, where their first positions are given.
      hidden_states: Token vectors after the embeddings and each block, where asked for.
      attention: Queries, keys and values of each layer, where asked for: a tuple of ``AttentionInputs``.
    """

    logits: Any = None
    last_hidden_state: Any = None
    pooled: Any = None
    next_sentence_logits: Any = None
    hidden_states: Any = None
    attention: Any = None


def check_inputs(task: str, shape: Sequence[Size], *, has_entities: bool) -> None:
    """Refuses inputs that a task does not take.

    Args:
      task: Canonical task name.
      shape: Shape of ``input_ids``.
      has_entities: Whether the batch says where two entities are.

    Raises:
      ShapeError: Multiple choice without an axis of choices or another task with one, or a relation without entities.
    """
    if len(shape) != (3 if task == "multiple-choice" else 2):
        expected = "[batch, choices, length]" if task == "multiple-choice" else "[batch, length]"
        raise ShapeError(f"input_ids has shape {list(shape)}, but {task} takes {expected}.")
    if task == "relation-classification" and not has_entities:
        raise ShapeError("The batch has no 'entity_mask', which says what tokens the two entities have.")


class Network(nnx.Module):
    """Embeddings, encoder and the heads of one task.

    A family whose mathematics differs hands in an encoder or embeddings of its own, or extends ``make_heads`` and ``apply_heads``.

    Args:
      config: Architecture.
      task: A key of ``TASK_HEADS``.
      execution: How it is run.
      rngs: Source of keys for new weights.
      style: What the family builds differently in the heads.
      embeddings: Builds the embeddings.
      encoder: Builds the encoder.
    """

    def __init__(
        self,
        config: ModelConfig,
        task: str,
        execution: Execution,
        rngs: nnx.Rngs,
        *,
        style: HeadStyle = BERT_HEADS,
        embeddings: Callable[..., Any] = Embeddings,
        encoder: Callable[..., Any] = Encoder,
    ) -> None:
        self.config = config
        self.task = task
        self.execution = execution
        self.style = style
        self.embeddings = embeddings(config, execution, rngs)
        self.encoder = encoder(config, execution, rngs)
        self.make_heads(TASK_HEADS[task], rngs)

    def dense(self, in_size: int, out_size: int, rngs: nnx.Rngs, use_bias: bool = True) -> Dense:
        """Returns a new dense layer of a head.

        Args:
          in_size: Entries of the contracted axis.
          out_size: Entries of the new axis.
          rngs: Source of keys for new weights.
          use_bias: Whether there is a bias.
        """
        dtype = Precision(self.execution.precision).compute_dtype
        return Dense(in_size, out_size, self.config.initializer_range, dtype, rngs, use_bias)

    def make_heads(self, heads: tuple[str, ...], rngs: nnx.Rngs) -> None:
        """Builds the heads of the task.

        Args:
          heads: Their names.
          rngs: Source of keys for new weights.

        Raises:
          ConfigError: A multiple choice head is to have more than one output.
        """
        config, style, width = self.config, self.style, self.config.hidden_size
        if self.task == "multiple-choice" and config.num_labels != 1:
            raise ConfigError(f"A multiple choice head has one output, but num_labels is {config.num_labels}.")
        if "classifier" in heads and "pooler" in heads and style.dense_activation(self.task):
            self.classifier_dense = self.dense(width, width, rngs)
        elif "pooler" in heads or (not heads and config.has_pooler and style.has_pooler):
            self.pooler = Pooler(config, self.execution, rngs)
        if "classifier" in heads:
            self.classifier = self.dense(width, config.num_labels, rngs)
        if "masked_lm" in heads:
            self.masked_lm = MaskedLanguageHead(config, self.execution, rngs, style)
        if "next_sentence" in heads and style.orders_sentences:
            self.sentence_order = self.dense(width, config.num_next_sentence_labels, rngs)
        elif "next_sentence" in heads:
            self.next_sentence = self.dense(width, config.num_next_sentence_labels, rngs)
        if "span" in heads:
            self.span = self.dense(width, config.num_span_ends, rngs)
        if "relation" in heads:
            self.relation = RelationHead(config, self.execution, rngs)
        for name, build in _TOKEN_HEADS.items():
            if name in heads:
                setattr(self, name, build(config, self.execution, rngs))

    def __call__(
        self,
        input_ids: Int[Array, "batch *choices length"],
        attention_mask: Int[Array, "batch *choices length"] | None = None,
        token_type_ids: Int[Array, "batch *choices length"] | None = None,
        position_ids: Int[Array, "batch *choices length"] | None = None,
        segment_ids: Int[Array, "batch *choices length"] | None = None,
        task_type_ids: Int[Array, "batch *choices length"] | None = None,
        entity_mask: Int[Array, "batch *choices length"] | None = None,
        masked_positions: Int[Array, "batch slots"] | None = None,
        first_positions: Int[Array, "batch segments"] | None = None,
        dropout_key: Any = None,
        keep_hidden: bool = False,
        keep_attention: bool = False,
    ) -> ModelOutput:
        """Runs the network.

        Args:
          input_ids: Token ids; for multiple choice ``[batch, choices, length]``, as the other inputs are then.
          attention_mask: 1 for real tokens, 0 for padding; None: all real.
          token_type_ids: 0 for the first text, 1 for the second; None: all 0.
          position_ids: Positions from 0; None: in order.
          segment_ids: For packed rows: number of each token's segment from 1, 0 for padding; replaces attention_mask.
          task_type_ids: Numbers of tasks for families that embed them; None: all 0.
          entity_mask: For relation classification: 1 for tokens of the first entity, 2 for those of the second, else 0.
          masked_positions: For masked language models: places of the tokens to score; None: all.
          first_positions: For packed rows of pre-training: place of each segment's first token, which the pooler reads.
          dropout_key: A JAX key, or None for no dropout.
          keep_hidden: Whether to return the hidden states after every block.
          keep_attention: Whether to return the queries, keys and values of every layer.

        Raises:
          ShapeError: Multiple choice without an axis of choices or another task with one, or a relation without entities.
        """
        shape = input_ids.shape
        check_inputs(self.task, shape, has_entities=entity_mask is not None)
        rows = lambda array: None if array is None else array.reshape(-1, shape[-1])
        dropout_key = None if dropout_key is None else key_words(dropout_key)
        visible = segment_ids if segment_ids is not None else attention_mask
        tokens = Tokens(
            input_ids=rows(input_ids),
            segment_ids=rows(jnp.ones_like(input_ids) if visible is None else visible),
            token_type_ids=rows(token_type_ids),
            position_ids=rows(position_ids),
            task_type_ids=rows(task_type_ids),
            masked_positions=masked_positions,
            first_positions=first_positions,
            packed=segment_ids is not None,
        )
        first_only = self.reads_first_token() and not keep_hidden
        with collecting(keep_attention) as layers:
            hidden, kept = self.encode(tokens, dropout_key, keep_hidden, first_only)
        output = self.apply_heads(hidden, tokens, entity_mask, fold(dropout_key, _HEAD))
        logits = output.logits.reshape(shape[:2]) if self.task == "multiple-choice" else output.logits
        states = {"hidden_states": kept, "last_hidden_state": None if first_only else hidden, "logits": logits}
        return dataclasses.replace(output, **states, attention=self.attention_of_layers(layers, keep_attention))

    def attention_of_layers(self, kept: list[AttentionInputs], wanted: bool) -> tuple[AttentionInputs, ...] | None:
        """Returns one entry for each layer of what was kept while the encoder ran, or None where that is not wanted.

        A layer of several blocks gives that of its last one; what decodes after the last layer is left out.

        Args:
          kept: Inputs of the attention of every block, in the order in which they ran.
          wanted: Whether it was asked for.
        """
        if not wanted:
            return None
        per_layer = max(1, len(kept) // self.config.num_hidden_layers)
        return tuple(kept[per_layer - 1 :: per_layer][: self.config.num_hidden_layers])

    def reads_first_token(self) -> bool:
        """Returns whether the heads read the first token's vector only; families whose heads read others replace it."""
        return self.task in FIRST_TOKEN_TASKS

    def encode(self, tokens: Tokens, key: Any, keep_hidden: bool, first_only: bool) -> tuple[Any, Any]:
        """Returns the last hidden states that the heads read and, on request, those after the embeddings and every block.

        Args:
          tokens: The tokens.
          key: Dropout key of the whole network, or None.
          keep_hidden: Whether to return the hidden states after every block.
          first_only: Whether the heads read the first token only.
        """
        embedded = self.embeddings(tokens, fold(key, _EMBEDDINGS))
        return self.encoder(embedded, tokens, fold(key, _ENCODER), keep_hidden, first_only)

    def apply_heads(self, hidden: jax.Array, tokens: Tokens, entity_mask: Any, key: Any) -> ModelOutput:
        """Returns what the heads make of the last hidden states.

        Args:
          hidden: ``[batch, length, embed]``; of the first token alone where the task reads no other.
          tokens: The tokens.
          entity_mask: As for a call.
          key: Dropout key, or None.
        """
        pooled = self._pooled(hidden, tokens) if hasattr(self, "pooler") else None
        next_sentence = None
        for name in ("next_sentence", "sentence_order"):
            if hasattr(self, name):
                next_sentence = self._score_pair(getattr(self, name), pooled, key)
        if self.task == "next-sentence-prediction":
            return ModelOutput(logits=next_sentence, pooled=pooled)
        if hasattr(self, "masked_lm"):
            hidden = tokens.predicted(hidden)
        logits = self._logits(hidden, pooled, entity_mask, key)
        return ModelOutput(logits=logits, pooled=pooled, next_sentence_logits=next_sentence)

    def _pooled(self, hidden: jax.Array, tokens: Tokens) -> jax.Array:
        if tokens.first_positions is None:
            return self.pooler(hidden)
        pooled = self.pooler(tokens.first_of_segments(hidden))
        return pooled.reshape(*tokens.first_positions.shape, pooled.shape[-1])

    def _score_pair(self, head: Dense, pooled: Any, key: Any) -> jax.Array:
        rate = self._classifier_rate() if self.style.orders_sentences else 0.0
        return head(dropout(pooled, fold(key, 1), rate)).astype(jnp.float32)

    def _classifier_rate(self) -> float:
        config = self.config
        per_token = "pooler" not in TASK_HEADS[self.task] and self.style.tokens_drop_as_blocks
        rate = config.classifier_dropout_rate
        return config.hidden_dropout_rate if rate is None or per_token else rate

    def _logits(self, hidden: jax.Array, pooled: Any, entity_mask: Any, key: Any) -> Any:
        if hasattr(self, "masked_lm"):
            return self.masked_lm(hidden, self.embeddings.word.embedding.get_value())
        if hasattr(self, "relation"):
            return self.relation(hidden, entity_mask, key, self._classifier_rate())
        if hasattr(self, "span"):
            rate = self.config.hidden_dropout_rate if self.style.drops_span_input else 0.0
            return self.span(dropout(hidden, key, rate)).astype(jnp.float32)
        for name in _TOKEN_HEADS:
            if hasattr(self, name):
                return getattr(self, name)(hidden)
        if not hasattr(self, "classifier"):
            return None
        rate, features = self._classifier_rate(), hidden if pooled is None else pooled
        if hasattr(self, "classifier_dense"):
            features = self._classifier_features(first_token(hidden)[:, 0], key, rate)
        return self.classifier(dropout(features, key, rate)).astype(jnp.float32)

    def _classifier_features(self, first: jax.Array, key: Any, rate: float) -> jax.Array:
        if self.style.drops_classifier_input and self.task != "multiple-choice":
            first = dropout(first, fold(key, 0), rate)
        name = self.style.dense_activation(self.task)
        return get_activation(self.config.hidden_act if name == "hidden_act" else name)(self.classifier_dense(first))


_TOKEN_HEADS: dict[str, Callable[..., Any]] = {
    "replaced_token": ReplacedTokenHead,
    "projection": ProjectionHead,
}
