"""DeBERTa's attention (He et al., 2020), which scores contents and distances of tokens apart."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.core.contraction import contract
from flaxbert.core.precision import Precision
from flaxbert.errors import ConfigError, MeshError
from flaxbert.nn.activations import get_activation
from flaxbert.nn.attention import SelfAttention, attend
from flaxbert.nn.dropout import dropout, fold
from flaxbert.nn.layers import Dense, LayerNorm
from flaxbert.nn.relative_positions import ordered_rows, relative_scores
from flaxbert.nn.split_length import sequence_ways
from flaxbert.nn.tokens import Tokens

SCORE_TYPES = ("c2p", "p2c", "none", "")
"""What pos_att_type may name: contents of the query by distance, contents of the key by distance, and words for neither."""


@dataclasses.dataclass(frozen=True)
class DisentangledOptions:
    """What DeBERTa alone has.

    Attributes:
      relative_attention: Whether distances are scored.
      max_relative_positions: Distances that are told apart; below 1: as many as there are positions.
      position_buckets: Buckets of distances on each side; below 1: every distance stands for itself.
      score_types: The scores of distances, of ``SCORE_TYPES``.
      norm_rel_ebd: ``layer_norm`` where the table of distances is normalised, or ``none``.
      share_att_key: Whether distances are projected by the layers of the contents.
      conv_kernel_size: Tokens under the convolution after the first block, an odd number; 0 for no convolution.
      conv_act: Activation of the convolution.
      conv_groups: Groups that the convolution is split into.
      pooler_dropout: Dropout of the first token before the pooler, in [0, 1).
      pooler_hidden_act: Activation of the pooler.
      legacy: Whether the masked language head has the names that stock transformers once gave it.
      enhanced_mask_decoder: Whether the masked language head reads what the last block makes of positions (section 3.2).
    """

    relative_attention: bool = False
    max_relative_positions: int = -1
    position_buckets: int = -1
    score_types: tuple[str, ...] = ()
    norm_rel_ebd: str = "none"
    share_att_key: bool = False
    conv_kernel_size: int = 0
    conv_act: str = "tanh"
    conv_groups: int = 1
    pooler_dropout: float = 0.0
    pooler_hidden_act: str = "gelu"
    legacy: bool = True
    enhanced_mask_decoder: bool = False

    def __post_init__(self) -> None:
        if not set(self.score_types) <= set(SCORE_TYPES):
            raise ConfigError(f"pos_att_type is {list(self.score_types)}, but may only name c2p and p2c.")
        if self.position_buckets == 1:
            raise ConfigError("position_buckets is 1, but takes at least 2 buckets; use -1 for none.")
        if self.norm_rel_ebd not in ("none", "layer_norm"):
            raise ConfigError(f"norm_rel_ebd is '{self.norm_rel_ebd}'; choose none or layer_norm.")
        if self.conv_kernel_size < 0 or (self.conv_kernel_size > 0 and self.conv_kernel_size % 2 == 0):
            raise ConfigError(f"conv_kernel_size is {self.conv_kernel_size}, but must be 0 or an odd number.")
        if self.conv_groups < 1:
            raise ConfigError(f"conv_groups is {self.conv_groups}, but must be at least 1.")
        if not 0.0 <= self.pooler_dropout < 1.0:
            raise ConfigError(f"pooler_dropout is {self.pooler_dropout}, but a dropout lies in [0, 1).")
        for name in (self.conv_act, self.pooler_hidden_act):
            get_activation(name)

    @property
    def scores_contents(self) -> bool:
        """Whether queries are scored by distance."""
        return self.relative_attention and "c2p" in self.score_types

    @property
    def scores_positions(self) -> bool:
        """Whether keys are scored by distance."""
        return self.relative_attention and "p2c" in self.score_types

    def num_distances(self, config: ModelConfig) -> int:
        """Returns how many distances are told apart before they are put into buckets.

        Args:
          config: Architecture.
        """
        return self.max_relative_positions if self.max_relative_positions > 0 else config.max_position_embeddings

    def num_rows(self, config: ModelConfig) -> int:
        """Returns the rows of the table of distances.

        Args:
          config: Architecture.
        """
        return 2 * (self.position_buckets if self.position_buckets > 0 else self.num_distances(config))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Distances:
    """What all blocks share.

    Attributes:
      rows: Those rows of the table of distances that can occur, ``[rows, embed]``; None where distances are not scored.
      places: Which of these rows each query and key have, int32 ``[batch, length, length]``; None where tokens stand in order.
      contents: Vectors that keys and values are made of, ``[batch, length, embed]``; None: those that queries are made of.
    """

    rows: Any = None
    places: Any = None
    contents: Any = None


class DisentangledAttention(SelfAttention):
    """Multi-head self-attention that adds scores of distances.

    Args:
      config: Architecture.
      execution: Precision and attention implementation.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        super().__init__(config, execution, rngs)
        options = config.own(DisentangledOptions)
        self.make_row_layers(rngs, has_key_bias=True, is_shared=options.share_att_key)

    def make_row_layers(self, rngs: nnx.Rngs, has_key_bias: bool, is_shared: bool = False) -> None:
        """Builds the layers that project rows of distances.

        Args:
          rngs: Source of keys for new weights.
          has_key_bias: Whether the layer of keys has a bias.
          is_shared: Whether the layers of the contents do it.
        """
        config, options = self.config, self.config.own(DisentangledOptions)
        dtype, deviation = Precision(self.execution.precision).compute_dtype, config.initializer_range
        if is_shared:
            return
        sizes = (config.hidden_size, config.attention_size, deviation, dtype, rngs)
        if options.scores_contents:
            self.position_key = Dense(*sizes, use_bias=has_key_bias)
        if options.scores_positions:
            self.position_query = Dense(*sizes)

    def num_score_types(self) -> int:
        """Returns by how many scores of distances the scale grows."""
        return len({"c2p", "p2c"} & {*self.config.own(DisentangledOptions).score_types})

    def project(
        self, hidden: Float[Array, "batch length embed"], contents: Float[Array, "batch length embed"] | None
    ) -> tuple[Any, Any, Any]:
        """Returns queries, keys and values, ``[batch, heads, length, head_dim]``.

        Args:
          hidden: What queries are made of.
          contents: What keys and values are made of; None: the same.
        """
        contents, heads = hidden if contents is None else contents, self.config.num_attention_heads
        return (
            self.query.by_heads(hidden, heads),
            self.key.by_heads(contents, heads),
            self.value.by_heads(contents, heads),
        )

    def project_rows(self, rows: Float[Array, "rows embed"]) -> tuple[Any, Any]:
        """Returns keys and queries of rows of distances, ``[heads, rows, head_dim]``; None for those that are not scored.

        Args:
          rows: The rows.
        """
        options, heads = self.config.own(DisentangledOptions), self.config.num_attention_heads
        names = ("key", "query") if options.share_att_key else ("position_key", "position_query")
        wanted = (options.scores_contents, options.scores_positions)
        key, query = (
            getattr(self, name).by_heads(rows[None], heads)[0] if is_wanted else None
            for name, is_wanted in zip(names, wanted, strict=True)
        )
        return key, query

    def mix(
        self, hidden: Float[Array, "batch length embed"], tokens: Tokens, shared: Distances, key: Any
    ) -> Float[Array, "batch length attention"]:
        """Returns what each token gathers from the tokens that it sees, all heads side by side.

        Args:
          hidden: Hidden states.
          tokens: Which tokens see each other.
          shared: The rows of distances.
          key: Dropout key, or None.
        """
        config, options = self.config, self.config.own(DisentangledOptions)
        # Padding sees nothing, as in stock transformers, whose results there then are the same: all scores of its queries are 0.
        tokens, is_real = dataclasses.replace(tokens, packed=True), (tokens.segment_ids != 0)[:, None, :, None]
        if shared.rows is not None and sequence_ways() > 1:
            raise MeshError(
                f"mesh.sequence {sequence_ways()} splits the tokens of a row over devices, but DeBERTa scores the distance of every pair of "
                "tokens from both of its ends, and no device would hold both; set mesh.sequence 1 and use mesh.fsdp or mesh.tensor."
            )
        query, keys, values = self.project(hidden, shared.contents)
        query = jnp.where(is_real, query, jnp.zeros((), query.dtype))
        scale, scores = (config.head_dim * (1 + self.num_score_types())) ** -0.5, None
        if shared.rows is not None:
            rows = dropout(shared.rows, fold(key, 1), config.hidden_dropout_rate, by_example=False)
            places = None
            if shared.places is None:
                places = ordered_rows(tokens.length, options.position_buckets, options.num_distances(config))[1]
            scores = relative_scores(query, keys, *self.project_rows(rows), shared.places, places)
            scores = jnp.where(is_real, scores * jnp.float32(scale), jnp.float32(0.0)).astype(query.dtype)
        rate = config.attention_dropout_rate
        mixed = attend(query, keys, values, tokens, self.execution, rate, key, position_scores=scores, scale=scale)
        return jnp.swapaxes(jnp.asarray(mixed), 1, 2).reshape(*hidden.shape[:2], config.attention_size)


class JointAttention(DisentangledAttention):
    """The same with one kernel for queries, keys and values, head by head, and no bias of keys (DeBERTa v1).

    Args:
      config: Architecture.
      execution: Precision and attention implementation.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        nnx.Module.__init__(self)
        dtype, deviation = Precision(execution.precision).compute_dtype, config.initializer_range
        width = config.attention_size
        self.config = config
        self.execution = execution
        self.joint = Dense(config.hidden_size, 3 * width, deviation, dtype, rngs, use_bias=False)
        self.query_bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.value_bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.output = Dense(width, config.hidden_size, deviation, dtype, rngs)
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_epsilon, dtype)
        self.make_row_layers(rngs, has_key_bias=False)

    def num_score_types(self) -> int:
        """Returns by how many scores of distances the scale grows; here every word counts."""
        return len(self.config.own(DisentangledOptions).score_types)

    def project(
        self, hidden: Float[Array, "batch length embed"], contents: Float[Array, "batch length embed"] | None
    ) -> tuple[Any, Any, Any]:
        """Returns queries, keys and values."""
        heads, width = self.config.num_attention_heads, self.config.head_dim
        query_bias, value_bias = (leaf.get_value().reshape(heads, width) for leaf in (self.query_bias, self.value_bias))
        bias = jnp.stack([query_bias, jnp.zeros_like(query_bias), value_bias], axis=1).reshape(-1)
        dtype, kernel = self.joint.compute_dtype, self.joint.kernel.get_value()
        parts = jnp.split(
            contract(hidden, kernel, bias, compute_dtype=dtype, num_heads=heads).astype(dtype), 3, axis=-1
        )
        if contents is not None:
            joined = contract(contents, kernel, bias, compute_dtype=dtype, num_heads=heads).astype(dtype)
            parts = [parts[0], *jnp.split(joined, 3, axis=-1)[1:]]
        return parts[0], parts[1], parts[2]
