"""ALBERT (Lan et al., 2020): narrow embeddings, and blocks whose weights are shared by all layers of a group."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.core.precision import Precision
from flaxbert.errors import ConfigError
from flaxbert.families.base import TensorName, TiedTensor
from flaxbert.families.config_json import FIELDS, ConfigMapping
from flaxbert.families.layout import (
    HEAD_TENSORS,
    TABLE_TENSORS,
    class_names,
    dense,
    make_family,
    norm,
)
from flaxbert.families.work import LayerWork, standard_layers
from flaxbert.nn.attention_capture import keep_all, returning, unstacked
from flaxbert.nn.dropout import fold
from flaxbert.nn.embeddings import Embeddings
from flaxbert.nn.encoder import Block, Encoder, check_equal_layers
from flaxbert.nn.heads import HeadStyle
from flaxbert.nn.layers import Dense
from flaxbert.nn.network import Network
from flaxbert.nn.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class AlbertOptions:
    """What ALBERT alone has.

    Attributes:
      num_hidden_groups: Groups of layers that share their weights.
      inner_group_num: Different blocks one after the other in each layer.
    """

    num_hidden_groups: int = 1
    inner_group_num: int = 1

    def __post_init__(self) -> None:
        for field in ("num_hidden_groups", "inner_group_num"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field} of the model is {getattr(self, field)}, but must be at least 1.")


class AlbertEmbeddings(Embeddings):
    """BERT's embeddings, always projected to the width of the blocks.

    Args:
      config: Architecture.
      execution: Precision.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        super().__init__(config, execution, rngs)
        dtype = Precision(execution.precision).compute_dtype
        if not hasattr(self, "project"):
            width, deviation = config.embedding_width, config.initializer_range
            self.project = Dense(width, config.hidden_size, deviation, dtype, rngs)


class AlbertGroup(nnx.Module):
    """The blocks of one layer of a group.

    Args:
      config: Architecture.
      execution: How it is run.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        blocks = [Block(config, execution, rngs) for _ in range(config.own(AlbertOptions).inner_group_num)]
        self.blocks = nnx.List(blocks)


class AlbertEncoder(Encoder):
    """Layers that run the blocks of their group.

    Args:
      config: Architecture.
      execution: How it is run; scanned layers are one loop for each group.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        nnx.Module.__init__(self)
        self.config = config
        self.execution = execution
        check_equal_layers(config, "share weights as ALBERT's do")
        groups = [AlbertGroup(config, execution, rngs) for _ in range(config.own(AlbertOptions).num_hidden_groups)]
        self.groups = nnx.List(groups)

    def _layers_of_groups(self) -> list[list[int]]:
        num_layers, num_groups = self.config.num_hidden_layers, len(self.groups)
        members: list[list[int]] = [[] for _ in range(num_groups)]
        for layer in range(num_layers):
            members[int(layer / (num_layers / num_groups))].append(layer)
        return members

    def _run_unrolled(
        self, hidden: Any, tokens: Tokens, shared: Any, key: Any, keep_hidden: bool, first_only: bool
    ) -> Any:
        kept, last = [hidden], self.config.num_hidden_layers - 1
        for group, layers in zip(self.groups, self._layers_of_groups(), strict=True):
            for layer in layers:
                for inner, block in enumerate(group.blocks):
                    first = first_only and layer == last and inner == len(group.blocks) - 1
                    graphdef, state = nnx.split(block)
                    block_key = fold(key, layer * len(group.blocks) + inner)
                    hidden = self._step(graphdef, first)(state, hidden, tokens, shared, block_key)
                kept.append(hidden)
        return hidden, tuple(kept) if keep_hidden else None

    def _run_scanned(self, hidden: Any, tokens: Tokens, shared: Any, key: Any, keep_hidden: bool) -> Any:
        kept = [hidden]
        for group, layers in zip(self.groups, self._layers_of_groups(), strict=True):
            parts = [nnx.split(block) for block in group.blocks]

            def run_layer(carry: jax.Array, layer: jax.Array, parts: Any = parts) -> jax.Array:
                for inner, (graphdef, state) in enumerate(parts):
                    block_key = fold(key, layer * jnp.int32(len(parts)) + jnp.int32(inner))
                    carry = self._step(graphdef)(state, carry, tokens, shared, block_key)
                return carry

            def body(carry: jax.Array, layer: jax.Array, run: Any = run_layer) -> tuple[jax.Array, Any]:
                after, attention = returning(run)(carry, layer)
                return after, (after if keep_hidden else None, attention)

            if layers:
                hidden, (after, attention) = jax.lax.scan(body, hidden, jnp.asarray(layers, jnp.int32))
                keep_all(unstacked(attention, len(layers)))
                kept.extend(after[index] for index in range(len(layers)) if after is not None)
        return hidden, tuple(kept) if keep_hidden else None


_BLOCK = "encoder.groups.{group}.blocks.{inner}"
_THEIR_BLOCK = "encoder.albert_layer_groups.{group}.albert_layers.{inner}"

TENSORS: tuple[TensorName, ...] = (
    *TABLE_TENSORS,
    *dense("embeddings.project", "encoder.embedding_hidden_mapping_in"),
    *dense(f"{_BLOCK}.attention.query", f"{_THEIR_BLOCK}.attention.query"),
    *dense(f"{_BLOCK}.attention.key", f"{_THEIR_BLOCK}.attention.key"),
    *dense(f"{_BLOCK}.attention.value", f"{_THEIR_BLOCK}.attention.value"),
    *dense(f"{_BLOCK}.attention.output", f"{_THEIR_BLOCK}.attention.dense"),
    *norm(f"{_BLOCK}.attention.norm", f"{_THEIR_BLOCK}.attention.LayerNorm"),
    *dense(f"{_BLOCK}.feed_forward.up", f"{_THEIR_BLOCK}.ffn"),
    *dense(f"{_BLOCK}.feed_forward.down", f"{_THEIR_BLOCK}.ffn_output"),
    *norm(f"{_BLOCK}.feed_forward.norm", f"{_THEIR_BLOCK}.full_layer_layer_norm"),
    *dense("pooler.dense", "pooler"),
    *dense("classifier", "classifier", in_base=False),
    *dense("masked_lm.transform", "predictions.dense", in_base=False),
    *norm("masked_lm.norm", "predictions.LayerNorm", in_base=False),
    TensorName("masked_lm.bias", "predictions.bias", in_base=False),
    *dense("sentence_order", "sop_classifier.classifier", in_base=False),
    *HEAD_TENSORS,
)

CONFIG = ConfigMapping(
    "albert",
    class_names("Albert", pretraining="AlbertForPreTraining"),
    {
        "embedding_size": 128,
        "hidden_act": "gelu_new",
        "hidden_dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
        "classifier_dropout_rate": 0.1,
    },
    fields={
        **{key: field for key, field in FIELDS.items() if key != "classifier_dropout"},
        "classifier_dropout_prob": ("classifier_dropout_rate", float),
        "embedding_size": ("embedding_size", int),
    },
    options=AlbertOptions,
    option_fields={"num_hidden_groups": ("num_hidden_groups", int), "inner_group_num": ("inner_group_num", int)},
)


def layer_work(config: ModelConfig, task: str) -> tuple[LayerWork, ...]:
    """Returns the work of every block, of which a layer may have several.

    Args:
      config: Architecture.
      task: Not used.
    """
    return standard_layers(config, task) * config.own(AlbertOptions).inner_group_num


ALBERT = make_family(
    CONFIG,
    prefix="albert",
    tensors=TENSORS,
    tied={
        "predictions.decoder.weight": TiedTensor("embeddings.word.embedding", "masked_lm"),
        "predictions.decoder.bias": TiedTensor("masked_lm.bias", "masked_lm"),
    },
    network=functools.partial(
        Network,
        style=HeadStyle(orders_sentences=True),
        embeddings=AlbertEmbeddings,
        encoder=AlbertEncoder,
    ),
    layer_work=layer_work,
    unprunable=lambda config: {
        "layers": "its layers share their weights, so that dropping one would remove none; start from fewer layers "
        "(num_hidden_layers of config.json) instead",
    },
    repeats=lambda config: {
        "group": config.own(AlbertOptions).num_hidden_groups,
        "inner": config.own(AlbertOptions).inner_group_num,
    },
)
