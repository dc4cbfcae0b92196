"""DeBERTa's blocks (He et al., 2020): what they share, the convolution after the first one, and the enhanced mask decoder."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.core.precision import Precision
from flaxbert.errors import ConfigError
from flaxbert.nn.activations import get_activation
from flaxbert.nn.convolution import shifted
from flaxbert.nn.disentangled_attention import DisentangledAttention, DisentangledOptions, Distances, JointAttention
from flaxbert.nn.dropout import dropout, fold
from flaxbert.nn.encoder import Block, Encoder
from flaxbert.nn.layers import Embed, LayerNorm, multiply_groups, truncated_normal
from flaxbert.nn.relative_positions import ordered_rows, rows_of_positions
from flaxbert.nn.tokens import Tokens


class DisentangledBlock(Block):
    """A block of DeBERTa v2."""

    attention_type = DisentangledAttention


class JointBlock(Block):
    """A block of DeBERTa v1."""

    attention_type = JointAttention


class ResidualConvolution(nnx.Module):
    """``norm(residual + activation(dropout(convolution(hidden))))`` along the length (He et al., 2021, DeBERTa-v2's code).

    Args:
      config: Architecture.
      execution: Precision.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        options, width = config.own(DisentangledOptions), config.hidden_size
        self.config = config
        self.compute_dtype = Precision(execution.precision).compute_dtype
        if width % options.conv_groups:
            raise ConfigError(f"hidden_size {width} is not divisible by conv_groups {options.conv_groups}.")
        shape = (options.conv_kernel_size, width // options.conv_groups, width)
        self.kernel = nnx.Param(truncated_normal(rngs.params(), shape, config.initializer_range))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.norm = LayerNorm(width, config.layer_norm_epsilon, self.compute_dtype)

    def __call__(
        self,
        hidden: Float[Array, "batch length embed"],
        residual: Float[Array, "batch tokens embed"],
        segment_ids: Int[Array, "batch length"],
        key: Any,
    ) -> Float[Array, "batch tokens embed"]:
        """Returns the new hidden states, of as many tokens as the residual has.

        Args:
          hidden: What is convolved.
          residual: What is added.
          segment_ids: For what a token sees.
          key: Dropout key, or None.
        """
        options, num_tokens = self.config.own(DisentangledOptions), residual.shape[1]
        kernel = self.kernel.get_value().astype(self.compute_dtype)
        size, inputs = kernel.shape[:2]
        kernel = jnp.swapaxes(kernel.reshape(size, inputs, options.conv_groups, -1), 1, 2)
        convolved = jnp.zeros((), jnp.float32)
        for tap, values in enumerate(shifted(hidden, segment_ids, size)):
            convolved = convolved + multiply_groups(values[:, :num_tokens], kernel[tap])
        convolved = (convolved + self.bias.get_value()).astype(self.compute_dtype)
        dropped = dropout(convolved, fold(key, 3), self.config.hidden_dropout_rate, hidden.shape[1])
        joined = self.norm(residual + get_activation(options.conv_act)(dropped))
        is_real = (segment_ids[:, :num_tokens] != 0)[..., None]
        return jnp.where(is_real, joined, jnp.zeros((), joined.dtype))


class DisentangledEncoder(Encoder):
    """A stack of DeBERTa's blocks that share a table of distances.

    Args:
      config: Architecture.
      execution: How it is run.
      rngs: Source of keys for new weights.
      block: Builds a block.
    """

    def __init__(
        self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs, block: type[Block] = DisentangledBlock
    ) -> None:
        super().__init__(config, execution, rngs, block)
        options, dtype = config.own(DisentangledOptions), Precision(execution.precision).compute_dtype
        if options.relative_attention:
            self.distance = Embed(options.num_rows(config), config.hidden_size, config.initializer_range, rngs)
        if options.norm_rel_ebd == "layer_norm":
            self.distance_norm = LayerNorm(config.hidden_size, config.layer_norm_epsilon, dtype)
        if options.conv_kernel_size:
            self.convolution = ResidualConvolution(config, execution, rngs)

    def share(self, hidden: Float[Array, "batch length embed"], tokens: Tokens, key: Any) -> Distances:
        """Returns the rows of distances that can occur."""
        config, options = self.config, self.config.own(DisentangledOptions)
        if not (options.scores_contents or options.scores_positions):
            return Distances()
        num_buckets, num_distances, length = options.position_buckets, options.num_distances(config), tokens.length
        if tokens.position_ids is None:
            used, places = ordered_rows(length, num_buckets, num_distances)[0], None
        else:
            used = jnp.arange(options.num_rows(config), dtype=jnp.int32)
            most = config.max_position_embeddings
            farthest = max(length, most) if isinstance(length, int) else most  # symbolic lengths are those of exports
            places = rows_of_positions(tokens.positions(), num_buckets, num_distances, farthest)
        rows = self.distance(jnp.asarray(used))
        if hasattr(self, "distance_norm"):
            rows = self.distance_norm(rows)
        return Distances(rows.astype(hidden.dtype), places)

    def after_block(self, index: Any, before: jax.Array, after: jax.Array, tokens: Tokens, key: Any) -> jax.Array:
        """Returns the hidden states after the block, the first one's joined with the convolved embeddings."""
        if not hasattr(self, "convolution"):
            return after
        convolve = functools.partial(self._convolve, before, tokens=tokens, key=key)
        if isinstance(index, int):
            return convolve(after) if index == 0 else after
        return lax.cond(index == 0, convolve, lambda after: after, after)

    def _convolve(self, before: jax.Array, after: jax.Array, tokens: Tokens, key: Any) -> jax.Array:
        return self.convolution(before, after, tokens.segment_ids, key)

    def decode(
        self,
        hidden: Float[Array, "batch length embed"],
        positions: Float[Array, "rows length embed"],
        tokens: Tokens,
        key: Any,
    ) -> Float[Array, "batch length embed"]:
        """Returns what the last block, run twice, makes of positions that ask for contents (He et al., 2020, section 3.2).

        Args:
          hidden: Hidden states before the last block.
          positions: Vectors of positions, for each row or alike for all.
          tokens: The tokens.
          key: Dropout key, or None.
        """
        if self.execution.scan_layers:
            graphdef, state = nnx.split(self.layers.stacked)
            block = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[-1], state))
        else:
            block = self.layers[-1]
        shared = dataclasses.replace(self.share(hidden, tokens, key), contents=hidden)
        states = hidden + positions
        for number in range(2):
            states = block(states, tokens, shared, fold(key, number))
        return states
