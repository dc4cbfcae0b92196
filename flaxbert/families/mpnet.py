"""MPNet (Song et al., 2020): BERT's blocks with scores for the distance of two tokens, shared by all layers."""

import dataclasses
import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.core import axes
from flaxbert.core.rules import Rule
from flaxbert.errors import ConfigError
from flaxbert.families.base import TensorName
from flaxbert.families.config_json import FIELDS, ConfigMapping
from flaxbert.families.layout import (
    AXIS_RULES,
    class_names,
    dense,
    make_family,
    norm,
)
from flaxbert.families.roberta import ROBERTA_HEADS, STYLE, TIED
from flaxbert.nn.encoder import Encoder
from flaxbert.nn.layers import Embed
from flaxbert.nn.network import Network
from flaxbert.nn.tokens import Tokens

NUM_BUCKETS = 32
"""Distances are told apart in so many buckets, half of them for keys to the right; published models have no other number."""

FARTHEST_DISTANCE = 128
"""Distances from here on share the last bucket of their side."""

PADDING = 1
"""Id of padding that stock MPNet counts positions without, whatever its config says."""

_LAYER, _THEIR_LAYER = "encoder.layers.{layer}", "encoder.layer.{layer}"


@dataclasses.dataclass(frozen=True)
class MPNetOptions:
    """What MPNet alone has.

    Attributes:
      num_buckets: Rows of the table of distance scores.
    """

    num_buckets: int = NUM_BUCKETS

    def __post_init__(self) -> None:
        if self.num_buckets < NUM_BUCKETS:
            raise ConfigError(
                f"relative_attention_num_buckets is {self.num_buckets}, but MPNet tells {NUM_BUCKETS} buckets apart."
            )


def distance_buckets(distances: Int[Array, "..."]) -> Int[Array, "..."]:
    """Returns the bucket of each distance: one each up to 7 tokens, then logarithmic (Raffel et al., 2020, section 2.1).

    Args:
      distances: Position of the key less that of the query.
    """
    half = NUM_BUCKETS // 2
    exact = half // 2
    # A table made by numpy: a logarithm that is off by its last bit would put a distance into the wrong bucket.
    far = np.arange(FARTHEST_DISTANCE + 1)
    share = np.log(np.maximum(far, 1).astype(np.float32) / exact) / math.log(FARTHEST_DISTANCE / exact)
    logarithmic = np.minimum(exact + (share * (half - exact)).astype(np.int32), half - 1)
    table = jnp.asarray(np.where(far < exact, far, logarithmic).astype(np.int32))
    buckets = jnp.take(table, jnp.minimum(jnp.abs(distances), FARTHEST_DISTANCE))
    return buckets + half * (distances > 0).astype(jnp.int32)


def _check_padding(json: dict[str, Any]) -> dict[str, Any]:
    if json.get("pad_token_id", PADDING) != PADDING:
        raise ConfigError(
            f"pad_token_id is {json['pad_token_id']}, but MPNet counts positions over tokens that are not {PADDING}."
        )
    return json


class MPNetEncoder(Encoder):
    """BERT's encoder whose blocks share scores of distances.

    Args:
      config: Architecture.
      execution: How it is run.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        super().__init__(config, execution, rngs)
        options = config.own(MPNetOptions)
        self.distance = Embed(options.num_buckets, config.num_attention_heads, config.initializer_range, rngs)

    def share(self, hidden: Float[Array, "batch length embed"], tokens: Tokens, key: Any) -> Any:
        """Returns the scores, ``[batch or 1, heads, length, length]``."""
        places = tokens.positions()
        buckets = distance_buckets(places[:, None, :] - places[:, :, None])
        return jnp.transpose(self.distance(buckets), (0, 3, 1, 2))


TENSORS: tuple[TensorName, ...] = (
    TensorName("embeddings.word.embedding", "embeddings.word_embeddings.weight"),
    TensorName("embeddings.position.embedding", "embeddings.position_embeddings.weight"),
    *norm("embeddings.norm", "embeddings.LayerNorm"),
    TensorName("encoder.distance.embedding", "encoder.relative_attention_bias.weight"),
    *dense(f"{_LAYER}.attention.query", f"{_THEIR_LAYER}.attention.attn.q"),
    *dense(f"{_LAYER}.attention.key", f"{_THEIR_LAYER}.attention.attn.k"),
    *dense(f"{_LAYER}.attention.value", f"{_THEIR_LAYER}.attention.attn.v"),
    *dense(f"{_LAYER}.attention.output", f"{_THEIR_LAYER}.attention.attn.o"),
    *norm(f"{_LAYER}.attention.norm", f"{_THEIR_LAYER}.attention.LayerNorm"),
    *dense(f"{_LAYER}.feed_forward.up", f"{_THEIR_LAYER}.intermediate.dense"),
    *dense(f"{_LAYER}.feed_forward.down", f"{_THEIR_LAYER}.output.dense"),
    *norm(f"{_LAYER}.feed_forward.norm", f"{_THEIR_LAYER}.output.LayerNorm"),
    *dense("pooler.dense", "pooler.dense"),
    *ROBERTA_HEADS,
)

CONFIG = ConfigMapping(
    "mpnet",
    class_names("MPNet"),
    {"pad_token_id": 1, "type_vocab_size": 0},
    type_row_needed=False,
    starts_after_padding=True,
    fields={key: field for key, field in FIELDS.items() if key != "type_vocab_size"},
    options=MPNetOptions,
    normalize=_check_padding,
    option_fields={"relative_attention_num_buckets": ("num_buckets", int)},
)

MPNET = make_family(
    CONFIG,
    prefix="mpnet",
    tensors=TENSORS,
    tied=TIED,
    axis_rules=(Rule(r"encoder\.distance\.embedding", ("distances", axes.HEADS)), *AXIS_RULES),
    network=functools.partial(
        Network,
        style=STYLE,
        encoder=MPNetEncoder,
    ),
    own_axes={"distances": lambda config: config.own(MPNetOptions).num_buckets},
    head_axes={axes.ATTENTION: 1, axes.HEADS: 1},
)
