"""Blocks and the stack of them: unrolled or scanned, with a choice of what the backward pass recomputes."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.errors import ConfigError
from flaxbert.nn.attention import SelfAttention
from flaxbert.nn.attention_capture import keep_all, returning, through, unstacked
from flaxbert.nn.dropout import fold
from flaxbert.nn.feed_forward import FeedForward
from flaxbert.nn.tokens import Tokens


def _applied(graphdef: Any, first_only: bool) -> Callable[..., Any]:
    """Returns a block, or a part of one, as a function of its state and inputs."""

    def apply(state: Any, hidden: Any, tokens: Tokens, shared: Any, key: Any) -> Any:
        return nnx.merge(graphdef, state)(hidden, tokens, shared, key, first_only)

    return apply


def run_attention(
    attention: Any, recompute: bool, hidden: jax.Array, tokens: Tokens, shared: Any, key: Any, first_only: bool
) -> jax.Array:
    """Runs the attention half of a block.

    Args:
      attention: The module.
      recompute: Whether the backward pass computes it again instead of keeping what is inside.
      hidden: What it reads.
      tokens: The tokens.
      shared: What all blocks share.
      key: Dropout key of the block, or None.
      first_only: Whether the result is that of the first token alone.

    Returns:
      What the half returns.
    """
    if not recompute:
        return attention(hidden, tokens, shared, key, first_only)
    graphdef, state = nnx.split(attention)
    return through(jax.checkpoint, _applied(graphdef, first_only))(state, hidden, tokens, shared, key)


class Block(nnx.Module):
    """Self-attention and feed-forward, each with residual and norm after it.

    A family whose halves differ names them: ``attention_type``, ``feed_forward_type``.

    Args:
      config: Architecture.
      execution: Precision and attention implementation.
      rngs: Source of keys for new weights.
    """

    attention_type: ClassVar[Callable[..., Any]] = SelfAttention
    feed_forward_type: ClassVar[Callable[..., Any]] = FeedForward

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        self.recompute_attention = execution.remat == "attention"
        self.attention = self.attention_type(config, execution, rngs)
        self.feed_forward = self.feed_forward_type(config, execution, rngs)

    def __call__(
        self,
        hidden: Float[Array, "batch length embed"],
        tokens: Tokens,
        shared: Any,
        key: Any,
        first_only: bool = False,
    ) -> Float[Array, "batch tokens embed"]:
        """Returns the hidden states after this block, or that of the first token alone."""
        attended = run_attention(self.attention, self.recompute_attention, hidden, tokens, shared, key, first_only)
        return self.feed_forward(attended, key, hidden.shape[1])


def check_equal_layers(config: ModelConfig, purpose: str) -> None:
    """Refuses layers of different sizes where all must be alike.

    Args:
      config: Architecture.
      purpose: What they can not do, and what to do instead, for the message.

    Raises:
      ConfigError: Layers differ in heads or in the width of the feed-forward layer.
    """
    if not config.has_equal_layers:
        raise ConfigError(
            f"The layers have different sizes (heads {config.layer_heads or config.num_attention_heads}, feed-forward "
            f"{config.layer_intermediate or config.intermediate_size}) and can not {purpose}, or prune with --even true."
        )


class StackedBlock(nnx.Module):
    """One block whose leaves carry a first ``layers`` axis, as ``core.trees.stack_layers`` makes them.

    Args:
      block: The block.
    """

    def __init__(self, block: nnx.Module) -> None:
        self.stacked = block


def _rematerialize(function: Callable[..., Any], policy: str) -> Callable[..., Any]:
    if policy == "full":
        return through(jax.checkpoint, function)
    if policy == "dots":
        dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        return through(functools.partial(jax.checkpoint, policy=dots), function)
    return function  # none; and attention, which Block recomputes


class Encoder(nnx.Module):
    """A stack of blocks.

    A family whose mathematics differs hands in its block or extends it: ``make_block``, what all blocks share (``share``), what
    happens between them (``after_block``) and at the end (``finish``).

    Args:
      config: Architecture.
      execution: How it is run.
      rngs: Source of keys for new weights.
      block: Builds a block.
    """

    def __init__(
        self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs, block: Callable[..., Any] = Block
    ) -> None:
        self.config = config
        self.execution = execution
        self.block = block
        self.layers: Any
        if execution.scan_layers:
            check_equal_layers(config, "be scanned as one loop; unroll them (model.scan_layers: false)")
            self.layers = StackedBlock(self.make_block(0, rngs))
        else:
            self.layers = nnx.List([self.make_block(index, rngs) for index in range(config.num_hidden_layers)])

    def make_block(self, index: int, rngs: nnx.Rngs) -> Any:
        """Returns a new block.

        Args:
          index: Its number, from 0.
          rngs: Source of keys for new weights.
        """
        return self.block(self.config.for_layer(index), self.execution, rngs)

    def share(self, hidden: Float[Array, "batch length embed"], tokens: Tokens, key: Any) -> Any:
        """Returns what is computed once for all blocks: a tree of arrays, or None.

        Args:
          hidden: Embedded tokens.
          tokens: The tokens.
          key: Dropout key, or None.
        """
        return None

    def after_block(self, index: Any, before: Any, after: Any, tokens: Tokens, key: Any) -> Any:
        """Returns the hidden states that the next block gets.

        Args:
          index: Number of the block, from 0; an array where layers are scanned.
          before: Hidden states before the block.
          after: Hidden states after it.
          tokens: The tokens.
          key: Dropout key of the block, or None.
        """
        return after

    def finish(self, hidden: Any) -> Any:
        """Returns the last hidden states from those after the last block.

        Args:
          hidden: Hidden states.
        """
        return hidden

    def __call__(
        self,
        hidden: Float[Array, "batch length embed"],
        tokens: Tokens,
        key: Any,
        keep_hidden: bool = False,
        first_only: bool = False,
    ) -> tuple[Float[Array, "batch tokens embed"], tuple[Float[Array, "batch length embed"], ...] | None]:
        """Returns the last hidden states and, on request, those after the embeddings and every block.

        With ``first_only``, an unrolled last block computes what comes after its attention for the first token alone, and
        the last hidden states have length 1. Layers that are scanned are all alike and compute everything.
        """
        shared = self.share(hidden, tokens, key)
        if self.execution.scan_layers:
            return self._run_scanned(hidden, tokens, shared, key, keep_hidden)
        return self._run_unrolled(hidden, tokens, shared, key, keep_hidden, first_only)

    def _step(self, graphdef: Any, first_only: bool = False) -> Callable[..., Any]:
        return _rematerialize(_applied(graphdef, first_only), self.execution.remat)

    def _run_unrolled(
        self, hidden: Any, tokens: Tokens, shared: Any, key: Any, keep_hidden: bool, first_only: bool
    ) -> Any:
        kept = [hidden]
        for index, layer in enumerate(self.layers):
            first, layer_key = first_only and index == len(self.layers) - 1, fold(key, index)
            if self.execution.remat in ("none", "attention"):
                after = layer(hidden, tokens, shared, layer_key, first)
            else:
                graphdef, state = nnx.split(layer)
                after = self._step(graphdef, first)(state, hidden, tokens, shared, layer_key)
            hidden = self.after_block(index, hidden, after, tokens, layer_key)
            kept.append(hidden)
        kept[-1] = last = self.finish(hidden)
        return last, tuple(kept) if keep_hidden else None

    def _run_scanned(self, hidden: Any, tokens: Tokens, shared: Any, key: Any, keep_hidden: bool) -> Any:
        graphdef, state = nnx.split(self.layers.stacked)
        step = self._step(graphdef)
        num_layers = jax.tree.leaves(state)[0].shape[0]

        def run_layer(carry: jax.Array, layer_state: Any, index: jax.Array) -> jax.Array:
            layer_key = fold(key, index)
            after = step(layer_state, carry, tokens, shared, layer_key)
            return self.after_block(index, carry, after, tokens, layer_key)

        def body(carry: jax.Array, inputs: tuple[Any, jax.Array]) -> tuple[jax.Array, Any]:
            after, attention = returning(run_layer)(carry, *inputs)
            return after, (after if keep_hidden else None, attention)

        last, (after, attention) = jax.lax.scan(body, hidden, (state, jnp.arange(num_layers, dtype=jnp.int32)))
        keep_all(unstacked(attention, num_layers))
        last = self.finish(last)
        if not keep_hidden or after is None:
            return last, None
        return last, (hidden, *(after[index] for index in range(num_layers - 1)), last)
