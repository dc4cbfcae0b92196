"""ModernBERT (Warner et al., 2024): rotary positions, gated feed-forward layers, and windows around each token."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.core import axes
from flaxbert.core.contraction import contract
from flaxbert.core.precision import Precision
from flaxbert.core.rules import Rule
from flaxbert.families.base import Family, TensorName, TiedTensor, keep_layers
from flaxbert.families.config_json import POSITIONS_KEY, ConfigMapping
from flaxbert.families.layout import (
    HEAD_TENSORS,
    axis_rules_without,
    class_names,
    dense,
    make_family,
    norm,
)
from flaxbert.families.modernbert_encoder import (
    FULL,
    SLIDING,
    ModernBertEmbeddings,
    ModernBertEncoder,
    ModernBertOptions,
    make_norm,
    narrow_deviation,
)
from flaxbert.families.rope_json import read_theta, write_theta
from flaxbert.families.work import LayerWork, standard_layer
from flaxbert.nn.activations import get_activation
from flaxbert.nn.dropout import dropout
from flaxbert.nn.heads import HeadStyle, pool
from flaxbert.nn.layers import Dense
from flaxbert.nn.network import ModelOutput, Network
from flaxbert.nn.split_length import first_token
from flaxbert.nn.tokens import Tokens

_WHOLE_INPUT_TASKS = frozenset({"sequence-classification", "multiple-choice"})
_PREDICTED_TASKS = _WHOLE_INPUT_TASKS | {"token-classification", "question-answering", "fill-mask"}


class PredictionHead(nnx.Module):
    """``norm(activation(dense(hidden)))``, before the classifier and the decoder alike.

    Args:
      config: Architecture.
      execution: Precision.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        options, width = config.own(ModernBertOptions), config.hidden_size
        dtype = Precision(execution.precision).compute_dtype
        self.activation_name = options.classifier_activation
        self.dense = Dense(width, width, narrow_deviation(config), dtype, rngs, options.classifier_bias)
        self.norm = make_norm(config, execution)

    def __call__(self, hidden: Float[Array, "*batch embed"]) -> Float[Array, "*batch pooled"]:
        """Returns the vectors in the compute type."""
        return self.norm(get_activation(self.activation_name)(self.dense(hidden)))


class WordBias(nnx.Module):
    """What is added to the scores of words.

    Args:
      vocab_size: Number of words.
    """

    def __init__(self, vocab_size: int) -> None:
        self.bias = nnx.Param(jnp.zeros((vocab_size,), jnp.float32))


class ModernBertNetwork(Network):
    """ModernBERT's encoder with the heads of one task.

    Args:
      config: Architecture.
      task: A key of ``TASK_HEADS``.
      execution: How it is run.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, task: str, execution: Execution, rngs: nnx.Rngs) -> None:
        self.options = config.own(ModernBertOptions)
        super().__init__(
            config,
            task,
            execution,
            rngs,
            style=HeadStyle(has_pooler=False),
            embeddings=ModernBertEmbeddings,
            encoder=ModernBertEncoder,
        )

    def make_heads(self, heads: tuple[str, ...], rngs: nnx.Rngs) -> None:
        """Builds the heads of the task."""
        config, width = self.config, self.config.hidden_size
        own = ("pooler", "classifier", "span", "masked_lm")
        super().make_heads(tuple(head for head in heads if head not in own), rngs)
        if self.task not in _PREDICTED_TASKS:
            return
        self.prediction = PredictionHead(config, self.execution, rngs)
        dtype = Precision(self.execution.precision).compute_dtype
        if "classifier" in heads:
            self.classifier = Dense(width, config.num_labels, width**-0.5, dtype, rngs)
        elif "span" in heads:
            self.span = Dense(width, config.num_span_ends, width**-0.5, dtype, rngs)
        elif self.options.decoder_bias:
            self.masked_lm: Any = WordBias(config.vocab_size)

    def reads_first_token(self) -> bool:
        """Returns whether the first token is classified; multiple choice reads the first one that is no padding."""
        return self.task == "sequence-classification" and self.options.classifier_pooling == "cls"

    def apply_heads(self, hidden: jax.Array, tokens: Tokens, entity_mask: Any, key: Any) -> ModelOutput:
        """Returns what the heads make of the last hidden states."""
        if self.task not in _PREDICTED_TASKS:
            return super().apply_heads(hidden, tokens, entity_mask, key)
        if self.task in _WHOLE_INPUT_TASKS:
            hidden = self._whole_input(hidden, tokens)
        if self.task == "fill-mask":
            return ModelOutput(logits=self._word_scores(self.prediction(tokens.predicted(hidden))))
        predicted = self.prediction(hidden)
        head = self.span if self.task == "question-answering" else self.classifier
        return ModelOutput(logits=head(dropout(predicted, key, self._classifier_rate())).astype(jnp.float32))

    def _whole_input(self, hidden: jax.Array, tokens: Tokens) -> jax.Array:
        real = (tokens.segment_ids != 0).astype(jnp.int32)
        if self.options.classifier_pooling == "mean":
            return pool(hidden, real, "mean")
        if self.task == "sequence-classification":
            return first_token(hidden)[:, 0]
        first = jnp.argmax(real, axis=1)[:, None, None]
        return jnp.take_along_axis(hidden, first, axis=1)[:, 0]

    def _word_scores(self, predicted: jax.Array) -> jax.Array:
        table, dtype = self.embeddings.word.embedding.get_value(), Precision(self.execution.precision).compute_dtype
        scores = contract(predicted, table, compute_dtype=dtype, transposed=True)
        return scores + self.masked_lm.bias.get_value() if self.options.decoder_bias else scores


def _theta(json: Mapping[str, Any], kind: str, key: str, default: Any) -> Any:
    """Returns the base of the frequencies of one kind of layers, as transformers 5 and, without its key, 4 say it."""
    read_theta(json.get("rope_scaling"), None)
    ropes = json.get("rope_parameters") or {}
    return read_theta(ropes.get(kind) if isinstance(ropes, Mapping) else ropes, json.get(key, default))


def _period(kinds: tuple[str, ...], preferred: Any) -> int:
    """Returns the n for which layers 0, n, 2n… and no others see the whole input, or 0 where there is none."""
    for period in (preferred, 3, *range(1, len(kinds) + 1)):
        if isinstance(period, int) and period > 0:
            pattern = tuple(SLIDING if layer % period else FULL for layer in range(len(kinds)))
            if kinds == pattern:
                return period
    return 0


def _normalize(json: dict[str, Any]) -> dict[str, Any]:
    """Brings the keys of transformers 5 into those of 4, which say the same in fewer words."""
    json = dict(json)
    json["global_rope_theta"] = _theta(json, FULL, "global_rope_theta", ModernBertOptions.global_rope_theta)
    local = _theta(json, SLIDING, "local_rope_theta", ModernBertOptions.local_rope_theta)
    json["local_rope_theta"] = json["global_rope_theta"] if local is None else local
    for key in ("rope_parameters", "rope_scaling", POSITIONS_KEY):
        json.pop(key, None)
    kinds = json.get("layer_types")
    if isinstance(kinds, list | tuple):
        ModernBertOptions(layer_types=tuple(kinds)).kinds(json.get("num_hidden_layers", len(kinds)))
        period = _period(tuple(kinds), json.pop("global_attn_every_n_layers", None))
        if period:
            json.pop("layer_types")
            json["global_attn_every_n_layers"] = period
    return json


def _extend(config: ModelConfig, task: str) -> dict[str, Any]:
    options = config.own(ModernBertOptions)
    kinds = options.kinds(config.num_hidden_layers)
    thetas = {FULL: options.global_rope_theta, SLIDING: options.local_rope_theta}
    return {
        "layer_types": list(kinds),
        "rope_parameters": {kind: write_theta(theta) for kind, theta in thetas.items()},
    }


CONFIG = ConfigMapping(
    "modernbert",
    class_names("ModernBert"),
    {
        "hidden_dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
        "classifier_dropout_rate": 0.0,
        "max_position_embeddings": 8192,
        "position_embedding": "none",
        "type_vocab_size": 0,
        "layer_norm_epsilon": 1e-5,
        "pad_token_id": 50283,
        "has_pooler": False,
    },
    type_row_needed=False,
    fields={
        "vocab_size": ("vocab_size", int),
        "hidden_size": ("hidden_size", int),
        "num_hidden_layers": ("num_hidden_layers", int),
        "num_attention_heads": ("num_attention_heads", int),
        "intermediate_size": ("intermediate_size", int),
        "hidden_activation": ("hidden_act", str),
        "embedding_dropout": ("hidden_dropout_rate", float),
        "attention_dropout": ("attention_dropout_rate", float),
        "classifier_dropout": ("classifier_dropout_rate", float),
        "max_position_embeddings": ("max_position_embeddings", int),
        "norm_eps": ("layer_norm_epsilon", float),
        "initializer_range": ("initializer_range", float),
        "pad_token_id": ("pad_token_id", int),
        "problem_type": ("problem_type", str),
    },
    options=ModernBertOptions,
    option_fields={
        "global_attn_every_n_layers": ("global_every", int),
        "layer_types": ("layer_types", tuple),
        "local_attention": ("local_attention", int),
        "global_rope_theta": ("global_rope_theta", float),
        "local_rope_theta": ("local_rope_theta", float),
        "norm_bias": ("norm_bias", bool),
        "attention_bias": ("attention_bias", bool),
        "mlp_bias": ("mlp_bias", bool),
        "decoder_bias": ("decoder_bias", bool),
        "classifier_bias": ("classifier_bias", bool),
        "classifier_activation": ("classifier_activation", str),
        "classifier_pooling": ("classifier_pooling", str),
        "mlp_dropout": ("mlp_dropout", float),
    },
    normalize=_normalize,
    extend=_extend,
)


def write_config(config: ModelConfig, task: str) -> dict[str, Any]:
    """Writes a ``config.json`` that transformers 4 and 5 read; 4 can not say every choice of layers that see a window.

    Args:
      config: Architecture.
      task: Task whose class the file names.

    Returns:
      The file's contents, ready for JSON.
    """
    rate = config.classifier_dropout_rate
    settled = config.replace(
        position_embedding="none",
        type_vocab_size=0,
        classifier_dropout_rate=config.hidden_dropout_rate if rate is None else rate,
    )
    json = CONFIG.write(settled, task)
    if config.own(ModernBertOptions).layer_types:
        json.pop("global_attn_every_n_layers")
    return json


_LAYER, _THEIR_LAYER = "encoder.layers.{layer}", "layers.{layer}"

TENSORS: tuple[TensorName, ...] = (
    TensorName("embeddings.word.embedding", "embeddings.tok_embeddings.weight"),
    *norm("embeddings.norm", "embeddings.norm"),
    *dense(f"{_LAYER}.attention.query_key_value", f"{_THEIR_LAYER}.attn.Wqkv"),
    *dense(f"{_LAYER}.attention.output", f"{_THEIR_LAYER}.attn.Wo"),
    *norm(f"{_LAYER}.feed_forward.norm", f"{_THEIR_LAYER}.mlp_norm"),
    *dense(f"{_LAYER}.feed_forward.up", f"{_THEIR_LAYER}.mlp.Wi"),
    *dense(f"{_LAYER}.feed_forward.down", f"{_THEIR_LAYER}.mlp.Wo"),
    *norm(f"{_LAYER}.norm", f"{_THEIR_LAYER}.attn_norm"),
    *dense("prediction.dense", "head.dense", in_base=False),
    *norm("prediction.norm", "head.norm", in_base=False),
    *dense("span", "qa_outputs", in_base=False, by_task={"question-answering": "classifier"}),
    *dense("classifier", "classifier", in_base=False),
    TensorName("masked_lm.bias", "decoder.bias", in_base=False),
    *(entry for entry in HEAD_TENSORS if not entry.leaf.startswith("span.")),
)

RULES: tuple[Rule[tuple[str, ...]], ...] = (
    Rule(r"encoder\.layers\.\d+\.attention\.query_key_value\.kernel", (axes.EMBED, "query_key_value")),
    Rule(r"encoder\.layers\.\d+\.attention\.query_key_value\.bias", ("query_key_value",), optional=True),
    Rule(r"encoder\.layers\.\d+\.feed_forward\.up\.kernel", (axes.EMBED, "gated")),
    Rule(r"encoder\.layers\.\d+\.feed_forward\.up\.bias", ("gated",), optional=True),
    Rule(r"prediction\.dense\.kernel", (axes.EMBED, axes.POOLED), optional=True),
    Rule(r"prediction\.(dense|norm)\.(bias|scale)", (axes.POOLED,), optional=True),
    *axis_rules_without(r"attention\.(query", r"feed_forward\.up"),
)


class ModernBertFamily(Family):
    """A family whose blocks hold the norm that comes after them: that of the next attention or, last, the final norm."""

    def tensor_table(self, config: ModelConfig) -> dict[str, TensorName]:
        """Returns the name table by leaf name, with layers written out."""
        table, last = super().tensor_table(config), config.num_hidden_layers - 1
        for layer in range(last + 1):
            for part, theirs in (("scale", "weight"), ("bias", "bias")):
                leaf, tensor = f"encoder.layers.{layer}.norm.{part}", f"layers.{layer + 1}.attn_norm.{theirs}"
                tensor = f"final_norm.{theirs}" if layer == last else tensor
                table[leaf] = dataclasses.replace(table[leaf], tensor=tensor)
        return table


def layer_work(config: ModelConfig, task: str) -> tuple[LayerWork, ...]:
    """Returns the work of every layer: gated, and most of them see a window.

    Args:
      config: Architecture.
      task: Not used.
    """
    del task
    options = config.own(ModernBertOptions)
    layers = [standard_layer(layer, feed_forward_matrices=3) for layer in config.layer_sizes]
    return tuple(
        layer if kind == FULL else dataclasses.replace(layer, radius=options.radius)
        for layer, kind in zip(layers, options.kinds(config.num_hidden_layers), strict=True)
    )


def select_layers(config: ModelConfig, kept: Sequence[int]) -> ModelConfig:
    """Returns the config with some layers only, each of which sees what it saw.

    Args:
      config: Architecture.
      kept: Numbers of the layers, in order.
    """
    options = config.own(ModernBertOptions)
    kinds = options.kinds(config.num_hidden_layers)
    shorter = keep_layers(config, kept)
    left = tuple(kinds[layer] for layer in kept)
    if left == dataclasses.replace(options, layer_types=()).kinds(len(left)):
        left = ()
    return shorter.replace(options=dataclasses.replace(options, layer_types=left))


MODERNBERT = make_family(
    CONFIG,
    prefix="model",
    tensors=TENSORS,
    tied={"decoder.weight": TiedTensor("embeddings.word.embedding", "masked_lm")},
    renamed={},
    layer_work=layer_work,
    axis_rules=RULES,
    config_to_json=write_config,
    network=ModernBertNetwork,
    kind=ModernBertFamily,
    head_axes={axes.ATTENTION: 1, "query_key_value": 3},
    neuron_axes={axes.MLP: 1, "gated": 2},
    select_layers=select_layers,
    next_layer_leaves=("norm.",),
    own_axes={
        "query_key_value": lambda config: 3 * config.attention_size,
        "gated": lambda config: 2 * config.intermediate_size,
    },
)
