"""NomicBERT (Nussbaum et al., 2024): BERT's blocks with rotary positions and gated feed-forward layers, for long inputs."""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.core import axes
from flaxbert.core.axes import Size
from flaxbert.core.precision import Precision
from flaxbert.core.rules import Rule
from flaxbert.errors import ConfigError
from flaxbert.families.base import TensorName
from flaxbert.families.bert import TIED
from flaxbert.families.config_json import HEAD_SIZE_KEY, POSITIONS_KEY, ConfigMapping
from flaxbert.families.layout import (
    HEAD_TENSORS,
    axis_rules_without,
    class_names,
    dense,
    make_family,
    norm,
)
from flaxbert.families.rope_json import read_theta, write_theta
from flaxbert.families.work import LayerWork, standard_layer
from flaxbert.nn.activations import get_activation
from flaxbert.nn.attention import SelfAttention, attend
from flaxbert.nn.dropout import dropout, fold
from flaxbert.nn.embeddings import Embeddings
from flaxbert.nn.encoder import Block, Encoder
from flaxbert.nn.feed_forward import FeedForward
from flaxbert.nn.heads import HeadStyle
from flaxbert.nn.layers import Dense, LayerNorm
from flaxbert.nn.network import Network
from flaxbert.nn.rotary import Rotation, check_head_dim, rotation, split_heads
from flaxbert.nn.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class NomicBertOptions:
    """What NomicBERT alone has.

    Attributes:
      rope_theta: Base of the rotary frequencies.
    """

    rope_theta: float = 1000.0

    def __post_init__(self) -> None:
        if not self.rope_theta > 0.0:
            raise ConfigError(f"rope_theta is {self.rope_theta}, but must be above 0.")


class RotaryAttention(SelfAttention):
    """BERT's attention half with turned queries and keys, one product for both and the values, and no biases.

    Args:
      config: Architecture.
      execution: Precision and attention implementation.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        nnx.Module.__init__(self)
        check_head_dim(config.head_dim)
        dtype, width, inner = Precision(execution.precision).compute_dtype, config.hidden_size, config.attention_size
        self.config, self.execution = config, execution
        self.query_key_value = Dense(width, 3 * inner, config.initializer_range, dtype, rngs, use_bias=False)
        self.output = Dense(inner, width, config.initializer_range, dtype, rngs, use_bias=False)
        self.norm = LayerNorm(width, config.layer_norm_epsilon, dtype)

    def mix(
        self, hidden: Float[Array, "batch length embed"], tokens: Tokens, shared: Any, key: Any
    ) -> Float[Array, "batch length attention"]:
        """Returns what each token gathers from the tokens that it sees, all heads side by side."""
        heads, rate = self.config.num_attention_heads, self.config.attention_dropout_rate
        joined = self.query_key_value.by_heads(hidden, 3 * heads)
        query, keys, values = split_heads(joined, shared)
        mixed = attend(query, keys, values, tokens, self.execution, rate, key)
        return jnp.swapaxes(jnp.asarray(mixed), 1, 2).reshape(*hidden.shape[:2], self.config.attention_size)


class NomicBertFeedForward(FeedForward):
    """BERT's feed-forward half with a gate and without biases (Shazeer, 2020).

    Args:
      config: Architecture.
      execution: Precision.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        nnx.Module.__init__(self)
        dtype, deviation = Precision(execution.precision).compute_dtype, config.initializer_range
        width, inner = config.hidden_size, config.intermediate_size
        self.config = config
        self.up = Dense(width, inner, deviation, dtype, rngs, use_bias=False)
        self.gate = Dense(width, inner, deviation, dtype, rngs, use_bias=False)
        self.down = Dense(inner, width, deviation, dtype, rngs, use_bias=False)
        self.norm = LayerNorm(width, config.layer_norm_epsilon, dtype)

    def __call__(
        self, hidden: Float[Array, "batch length embed"], key: Any, num_rows: Size = 0
    ) -> Float[Array, "batch length embed"]:
        """Returns the new hidden states; ``num_rows`` as for ``keep_mask``, where there are those of the first token only."""
        wide = get_activation(self.config.hidden_act)(self.gate(hidden)) * self.up(hidden)
        return self.norm(hidden + dropout(self.down(wide), fold(key, 2), self.config.hidden_dropout_rate, num_rows))


class NomicBertBlock(Block):
    """A block with NomicBERT's halves."""

    attention_type = RotaryAttention
    feed_forward_type = NomicBertFeedForward


class NomicBertEncoder(Encoder):
    """A stack of blocks that share the angles of the tokens."""

    def share(self, hidden: Float[Array, "batch length embed"], tokens: Tokens, key: Any) -> Rotation:
        """Returns the angles of the tokens."""
        return rotation(tokens.positions(), self.config.head_dim, self.config.own(NomicBertOptions).rope_theta)


def make_embeddings(config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> Embeddings:
    """Returns BERT's embeddings without positions.

    Args:
      config: Architecture.
      execution: Precision.
      rngs: Source of keys for new weights.
    """
    return Embeddings(config.replace(position_embedding="none", embedding_size=0), execution, rngs)


_LAYER, _THEIR_LAYER = "encoder.layers.{layer}", "encoder.layers.{layer}"

TENSORS: tuple[TensorName, ...] = (
    TensorName("embeddings.word.embedding", "embeddings.word_embeddings.weight"),
    TensorName("embeddings.token_type.embedding", "embeddings.token_type_embeddings.weight"),
    *norm("embeddings.norm", "emb_ln"),
    *dense(f"{_LAYER}.attention.query_key_value", f"{_THEIR_LAYER}.attn.Wqkv")[:1],
    *dense(f"{_LAYER}.attention.output", f"{_THEIR_LAYER}.attn.out_proj")[:1],
    *norm(f"{_LAYER}.attention.norm", f"{_THEIR_LAYER}.norm1"),
    *dense(f"{_LAYER}.feed_forward.up", f"{_THEIR_LAYER}.mlp.fc11")[:1],
    *dense(f"{_LAYER}.feed_forward.gate", f"{_THEIR_LAYER}.mlp.fc12")[:1],
    *dense(f"{_LAYER}.feed_forward.down", f"{_THEIR_LAYER}.mlp.fc2")[:1],
    *norm(f"{_LAYER}.feed_forward.norm", f"{_THEIR_LAYER}.norm2"),
    *dense("pooler.dense", "pooler.dense"),
    *dense("classifier", "classifier", in_base=False),
    *dense("masked_lm.transform", "cls.predictions.transform.dense", in_base=False),
    *norm("masked_lm.norm", "cls.predictions.transform.layer_norm", in_base=False),
    TensorName("masked_lm.bias", "cls.predictions.bias", in_base=False),
    *(entry for entry in HEAD_TENSORS if not entry.leaf.startswith("span.")),
)


def _normalize(json: dict[str, Any]) -> dict[str, Any]:
    json = dict(json)
    read_theta(json.pop("rope_scaling", None), None)
    json["rope_theta"] = read_theta(json.pop("rope_parameters", None), json.get("rope_theta"))
    json.pop(POSITIONS_KEY, None)
    head_dim = json.pop("head_dim", None)
    if head_dim and HEAD_SIZE_KEY not in json:
        json[HEAD_SIZE_KEY] = head_dim
    return json


CONFIG = ConfigMapping(
    "nomic_bert",
    {
        task: name
        for task, name in class_names("NomicBert").items()
        if task not in ("question-answering", "multiple-choice")
    },
    {
        "hidden_act": "silu",
        "hidden_dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
        "max_position_embeddings": 2048,
        "position_embedding": "none",
        "has_pooler": False,
    },
    options=NomicBertOptions,
    option_fields={"rope_theta": ("rope_theta", float)},
    normalize=_normalize,
    extend=lambda config, task: {"rope_parameters": write_theta(config.own(NomicBertOptions).rope_theta)},
)


def layer_work(config: ModelConfig, task: str) -> tuple[LayerWork, ...]:
    """Returns the work of every layer, whose feed-forward half has a gate.

    Args:
      config: Architecture.
      task: Not used.
    """
    del task
    return tuple(standard_layer(layer, feed_forward_matrices=3) for layer in config.layer_sizes)


def write_json(config: ModelConfig, task: str) -> dict[str, Any]:
    """Returns a ``config.json`` whose heads need not fill the hidden size, as stock classes know them.

    Args:
      config: Architecture.
      task: Task whose class the file names.
    """
    json = CONFIG.write(config.replace(position_embedding="none"), task)
    head_size = json.pop(HEAD_SIZE_KEY, None)
    return json if head_size is None else {**json, "head_dim": head_size}


NOMIC_BERT = make_family(
    CONFIG,
    prefix="nomic_bert",
    tensors=TENSORS,
    tied=TIED,
    renamed={},
    layer_work=layer_work,
    axis_rules=(
        Rule(r"encoder\.layers\.\d+\.attention\.query_key_value\.kernel", (axes.EMBED, "query_key_value")),
        Rule(r"encoder\.layers\.\d+\.feed_forward\.(up|gate)\.kernel", (axes.EMBED, axes.MLP)),
        *axis_rules_without(r"attention\.(query", r"feed_forward\.up"),
    ),
    config_to_json=write_json,
    stock_head_size=True,
    network=functools.partial(
        Network,
        style=HeadStyle(has_pooler=False),
        embeddings=make_embeddings,
        encoder=functools.partial(NomicBertEncoder, block=NomicBertBlock),
    ),
    own_axes={"query_key_value": lambda config: 3 * config.attention_size},
    head_axes={axes.ATTENTION: 1, "query_key_value": 3},
)
