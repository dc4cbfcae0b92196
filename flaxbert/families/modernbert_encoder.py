"""ModernBERT's encoder: rotary positions, gated feed-forward layers, and windows around each token in most layers."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.core.axes import Size
from flaxbert.core.precision import Precision
from flaxbert.errors import ConfigError
from flaxbert.nn.activations import get_activation
from flaxbert.nn.attention import attend, attend_with_bias
from flaxbert.nn.attention_capture import is_collecting, keep, keep_all, returning, unstacked
from flaxbert.nn.dropout import dropout, fold
from flaxbert.nn.embeddings import Embeddings
from flaxbert.nn.encoder import Encoder, run_attention
from flaxbert.nn.layers import Dense, Embed, LayerNorm
from flaxbert.nn.local_attention import Window, attend_near, join_blocks, make_window, split_blocks, with_neighbours
from flaxbert.nn.residual import add_residual
from flaxbert.nn.rotary import Rotation, check_head_dim, rotation, split_heads
from flaxbert.nn.split_length import first_token
from flaxbert.nn.tokens import Tokens

FULL, SLIDING = "full_attention", "sliding_attention"
POOLINGS = ("cls", "mean")


@dataclasses.dataclass(frozen=True)
class ModernBertOptions:
    """What ModernBERT alone has.

    Attributes:
      global_every: Layers 0, n, 2n… see the whole input, the others a window.
      layer_types: ``full_attention`` or ``sliding_attention`` for each layer, where ``global_every`` can not say it.
      local_attention: Width of the window; a token sees half of it on either side.
      global_rope_theta: Base of the rotary frequencies of layers that see the whole input.
      local_rope_theta: The same of layers that see a window.
      norm_bias: Whether norms have a bias.
      attention_bias: Whether the dense layers of attention have one.
      mlp_bias: Whether those of the feed-forward layer have one.
      decoder_bias: Whether the scores of words have one.
      classifier_bias: Whether the dense layer before classifier and decoder has one.
      classifier_activation: Activation of that layer.
      classifier_pooling: What is classified: ``cls``, the first token, or ``mean``.
      mlp_dropout: Dropout inside the feed-forward layer.
    """

    global_every: int = 3
    layer_types: tuple[str, ...] = ()
    local_attention: int = 128
    global_rope_theta: float = 160000.0
    local_rope_theta: float = 10000.0
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    decoder_bias: bool = True
    classifier_bias: bool = False
    classifier_activation: str = "gelu"
    classifier_pooling: str = "cls"
    mlp_dropout: float = 0.0

    def __post_init__(self) -> None:
        get_activation(self.classifier_activation)
        if self.classifier_pooling not in POOLINGS:
            raise ConfigError(f"classifier_pooling is '{self.classifier_pooling}'; choose {' or '.join(POOLINGS)}.")
        if self.global_every < 1 or self.local_attention < 1:
            raise ConfigError(
                f"global_attn_every_n_layers {self.global_every} and local_attention {self.local_attention} must be at least 1."
            )
        if not 0.0 <= self.mlp_dropout < 1.0:
            raise ConfigError(f"mlp_dropout is {self.mlp_dropout}, but a dropout lies in [0, 1).")
        for theta in (self.global_rope_theta, self.local_rope_theta):
            if not theta > 0.0:
                raise ConfigError(f"The rope_theta {theta} must be above 0.")
        unknown = sorted({*self.layer_types} - {FULL, SLIDING})
        if unknown:
            raise ConfigError(f"layer_types names {', '.join(unknown)}; a layer is {FULL} or {SLIDING}.")

    @property
    def radius(self) -> int:
        """Tokens that are seen on either side."""
        return self.local_attention // 2

    def kinds(self, num_layers: int) -> tuple[str, ...]:
        """Returns the kind of each layer.

        Args:
          num_layers: Number of layers.

        Raises:
          ConfigError: ``layer_types`` has another number of entries.
        """
        if not self.layer_types:
            return tuple(SLIDING if layer % self.global_every else FULL for layer in range(num_layers))
        if len(self.layer_types) != num_layers:
            raise ConfigError(f"layer_types has {len(self.layer_types)} entries, but the model {num_layers} layers.")
        return self.layer_types


def make_norm(config: ModelConfig, execution: Execution) -> LayerNorm:
    """Returns a new norm.

    Args:
      config: Architecture, for whether it has a bias.
      execution: Precision.
    """
    dtype, use_bias = Precision(execution.precision).compute_dtype, config.own(ModernBertOptions).norm_bias
    return LayerNorm(config.hidden_size, config.layer_norm_epsilon, dtype, use_bias)


def narrow_deviation(config: ModelConfig) -> float:
    """Returns the standard deviation of new weights that write to the residual stream.

    Args:
      config: Architecture.
    """
    return config.initializer_range / math.sqrt(2.0 * config.num_hidden_layers)


def _join_rows(array: jax.Array, batch: int, length: int, block: int) -> jax.Array:
    """Returns queries, keys or values of whole rows, ``[batch, heads, length, head_dim]``, of those of blocks."""
    if not block:
        return array
    return jnp.swapaxes(join_blocks(jnp.swapaxes(array, 1, 2), batch, length), 1, 2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What all blocks share.

    Attributes:
      rotation: Angles for layers that see the whole input; None where there is none.
      window: What layers that see a window need; None where there is none.
      is_full: Whether the block sees the whole input, where scanned layers differ; else None.
    """

    rotation: Any
    window: Any
    is_full: Any = None


class ModernBertEmbeddings(Embeddings):
    """Normalised word rows.

    Args:
      config: Architecture.
      execution: Precision.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        nnx.Module.__init__(self)
        self.config = config
        self.word = Embed(config.vocab_size, config.hidden_size, config.initializer_range, rngs)
        self.norm = make_norm(config, execution)

    def sum_rows(self, tokens: Tokens) -> Float[Array, "batch length embed"]:
        """Returns the word rows, float32."""
        return self.word(tokens.input_ids)


class ModernBertAttention(nnx.Module):
    """Attention with rotary positions, one product for queries, keys and values, without norm and residual.

    Args:
      config: Architecture.
      execution: Precision and attention implementation.
      kind: Which tokens are seen; where scanned layers differ, ``Surroundings`` says it instead.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, kind: str, rngs: nnx.Rngs) -> None:
        check_head_dim(config.head_dim)
        dtype, width, inner = Precision(execution.precision).compute_dtype, config.hidden_size, config.attention_size
        use_bias = config.own(ModernBertOptions).attention_bias
        self.config, self.execution, self.kind = config, execution, kind
        self.query_key_value = Dense(width, 3 * inner, config.initializer_range, dtype, rngs, use_bias)
        self.output = Dense(inner, width, narrow_deviation(config), dtype, rngs, use_bias)

    def _project(self, hidden: jax.Array, turned: Rotation) -> tuple[jax.Array, jax.Array, jax.Array]:
        return split_heads(self.query_key_value.by_heads(hidden, 3 * self.config.num_attention_heads), turned)

    def _join(self, mixed: jax.Array) -> jax.Array:
        mixed = jnp.swapaxes(mixed, 1, 2)
        return mixed.reshape(*mixed.shape[:2], self.config.attention_size)

    def mix_all(
        self, hidden: Float[Array, "batch length embed"], tokens: Tokens, turned: Rotation, key: Any
    ) -> Float[Array, "batch length attention"]:
        """Returns what each token gathers from the whole input, all heads side by side.

        Args:
          hidden: Normalised hidden states.
          tokens: Which tokens see each other.
          turned: Angles of the tokens.
          key: Dropout key, or None.
        """
        query, keys, values = self._project(hidden, turned)
        rate = self.config.attention_dropout_rate
        return self._join(jnp.asarray(attend(query, keys, values, tokens, self.execution, rate, key)))

    def mix_near(
        self, hidden: Float[Array, "batch length embed"], tokens: Tokens, window: Window, key: Any
    ) -> Float[Array, "batch length attention"]:
        """Returns what each token gathers from the window around it, all heads side by side.

        Args:
          hidden: Normalised hidden states.
          tokens: Which tokens see each other.
          window: What they see.
          key: Dropout key, or None.
        """
        rate = self.config.attention_dropout_rate
        if window.is_split:
            query, keys, values = self._project(hidden, window.rotation)
            keep(query, keys, values)
            return self._join(attend_near(query, keys, values, tokens, window.radius, rate, key))
        if window.bias is None:
            return self.mix_all(hidden, tokens, window.rotation, key)
        batch, length, _ = hidden.shape
        if window.block:
            hidden = split_blocks(hidden, window.block)
        query, keys, values = self._project(hidden, window.rotation)
        if is_collecting():
            whole = (_join_rows(array, batch, length, window.block) for array in (query, keys, values))
            keep(*whole)
        if window.block:
            keys, values = (with_neighbours(array, batch, window.radius) for array in (keys, values))
        mixed = self._join(attend_with_bias(query, keys, values, window.bias, rate, key))
        return join_blocks(mixed, batch, length) if window.block else mixed

    def __call__(
        self,
        hidden: Float[Array, "batch length embed"],
        tokens: Tokens,
        shared: Surroundings,
        key: Any,
        first_only: bool,
    ) -> Float[Array, "batch tokens embed"]:
        """Returns ``dropout(output(mix(hidden)))``, of the first token only where asked for."""
        all_tokens = lambda states: self.mix_all(states, tokens, shared.rotation, fold(key, 0))
        near_tokens = lambda states: self.mix_near(states, tokens, shared.window, fold(key, 0))
        if shared.is_full is None:
            mixed = (near_tokens if self.kind == SLIDING else all_tokens)(hidden)
        else:
            branches = (returning(all_tokens), returning(near_tokens))
            mixed, attention = lax.cond(shared.is_full, *branches, hidden)
            keep_all(attention)
        length = hidden.shape[1]
        if first_only:
            mixed = first_token(mixed)
        return dropout(self.output(mixed), fold(key, 1), self.config.attention_dropout_rate, length)


class GatedFeedForward(nnx.Module):
    """``down(dropout(activation(left) * right))`` of one product's two halves (Shazeer, 2020).

    Args:
      config: Architecture.
      execution: Precision.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        dtype, use_bias = Precision(execution.precision).compute_dtype, config.own(ModernBertOptions).mlp_bias
        width, inner = config.hidden_size, config.intermediate_size
        self.config = config
        self.norm = make_norm(config, execution)
        self.up = Dense(width, 2 * inner, config.initializer_range, dtype, rngs, use_bias)
        self.down = Dense(inner, width, narrow_deviation(config), dtype, rngs, use_bias)

    def __call__(
        self, hidden: Float[Array, "batch length embed"], key: Any, num_rows: Size = 0
    ) -> Float[Array, "batch length embed"]:
        """Returns what is added to the hidden states; ``num_rows`` as for ``keep_mask``."""
        config = self.config
        left, right = jnp.split(self.up(self.norm(hidden)), 2, axis=-1)
        gated = get_activation(config.hidden_act)(left) * right
        return self.down(dropout(gated, fold(key, 2), config.own(ModernBertOptions).mlp_dropout, num_rows))


class ModernBertBlock(nnx.Module):
    """Attention and feed-forward, each normalising what it reads.

    The norm before a block's attention belongs to the block before, and the last block has the encoder's final norm: so
    all blocks have the same leaves although the first one reads the embeddings without another norm.

    Args:
      config: Architecture.
      execution: How it is run.
      kind: Which tokens are seen; where scanned layers differ, ``Surroundings`` says it instead.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, kind: str, rngs: nnx.Rngs) -> None:
        self.recompute_attention = execution.remat == "attention"
        self.attention = ModernBertAttention(config, execution, kind, rngs)
        self.feed_forward = GatedFeedForward(config, execution, rngs)
        self.norm = make_norm(config, execution)

    def __call__(
        self, states: tuple[jax.Array, jax.Array], tokens: Tokens, shared: Any, key: Any, first_only: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the residual stream after this block and the same normalised, or those of the first token alone."""
        hidden, normalised = states
        gathered = run_attention(self.attention, self.recompute_attention, normalised, tokens, shared, key, first_only)
        attended = add_residual(first_token(hidden) if first_only else hidden, gathered)
        after = add_residual(attended, self.feed_forward(attended, key, hidden.shape[1]))
        return after, self.norm(after)


class ModernBertEncoder(Encoder):
    """A stack of blocks of two kinds.

    Args:
      config: Architecture.
      execution: How it is run.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        self.kinds = config.own(ModernBertOptions).kinds(config.num_hidden_layers)
        super().__init__(config, execution, rngs)

    def make_block(self, index: int, rngs: nnx.Rngs) -> Any:
        """Returns a new block."""
        return ModernBertBlock(self.config.for_layer(index), self.execution, self.kinds[index], rngs)

    def share(self, hidden: Float[Array, "batch length embed"], tokens: Tokens, key: Any) -> Surroundings:
        """Returns the angles of the tokens and what each sees."""
        options, positions, width = self.config.own(ModernBertOptions), tokens.positions(), self.config.head_dim
        whole = rotation(positions, width, options.global_rope_theta) if FULL in self.kinds else None
        window = None
        if SLIDING in self.kinds:
            turned = rotation(positions, width, options.local_rope_theta)
            window = make_window(tokens.segment_ids, tokens.packed, turned, options.radius)
        return Surroundings(whole, window)

    def _run_unrolled(
        self, hidden: Any, tokens: Tokens, shared: Any, key: Any, keep_hidden: bool, first_only: bool
    ) -> Any:
        states = (hidden, hidden)
        states, kept = super()._run_unrolled(states, tokens, shared, key, keep_hidden, first_only)
        return states[1], None if kept is None else (*(stream for stream, _ in kept[:-1]), states[1])

    def _run_scanned(self, hidden: Any, tokens: Tokens, shared: Any, key: Any, keep_hidden: bool) -> Any:
        graphdef, state = nnx.split(self.layers.stacked)
        step, num_layers = self._step(graphdef), len(self.kinds)
        differ = len(set(self.kinds)) > 1
        is_full = jnp.asarray([kind == FULL for kind in self.kinds])

        def run_layer(carry: Any, layer_state: Any, index: jax.Array, full: jax.Array) -> Any:
            around = dataclasses.replace(shared, is_full=full) if differ else shared
            return step(layer_state, carry, tokens, around, fold(key, index))

        def body(carry: Any, inputs: Any) -> tuple[Any, Any]:
            after, attention = returning(run_layer)(carry, *inputs)
            return after, (after[0] if keep_hidden else None, attention)

        layers = (state, jnp.arange(num_layers, dtype=jnp.int32), is_full)
        (_, last), (after, attention) = lax.scan(body, (hidden, hidden), layers)
        keep_all(unstacked(attention, num_layers))
        if not keep_hidden or after is None:
            return last, None
        return last, (hidden, *(after[index] for index in range(num_layers - 1)), last)
