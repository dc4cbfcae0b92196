"""Blocks and the stack of them: unrolled or scanned, with a choice of what the backward pass recomputes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.nn.attention import SelfAttention
from flaxbert.nn.dropout import fold
from flaxbert.nn.feed_forward import FeedForward


def _applied(graphdef: Any, packed: bool, first_only: bool) -> Callable[..., Any]:
    """Returns a block, or a part of one, as a function of its state and inputs."""

    def apply(state: Any, hidden: jax.Array, segment_ids: jax.Array, key: Any) -> jax.Array:
        return nnx.merge(graphdef, state)(hidden, segment_ids, packed, key, first_only)

    return apply


class Block(nnx.Module):
    """Self-attention and feed-forward, each with residual and norm after it.

    Args:
      config: Architecture.
      execution: Precision and attention implementation.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        self.recompute_attention = execution.remat == "attention"
        self.attention = SelfAttention(config, execution, rngs)
        self.feed_forward = FeedForward(config, execution, rngs)

    def __call__(
        self,
        hidden: Float[Array, "batch length embed"],
        segment_ids: Int[Array, "batch length"],
        packed: bool,
        key: Any,
        first_only: bool = False,
    ) -> Float[Array, "batch tokens embed"]:
        """Returns the hidden states after this block, or that of the first token alone."""
        attended = self._attend(hidden, segment_ids, packed, key, first_only)
        return self.feed_forward(attended, key, hidden.shape[1])

    def _attend(self, hidden: jax.Array, segment_ids: jax.Array, packed: bool, key: Any, first_only: bool) -> jax.Array:
        if not self.recompute_attention:
            return self.attention(hidden, segment_ids, packed, key, first_only)
        graphdef, state = nnx.split(self.attention)
        return jax.checkpoint(_applied(graphdef, packed, first_only))(state, hidden, segment_ids, key)


class StackedBlock(nnx.Module):
    """One block whose leaves carry a first ``layers`` axis, as ``core.trees.stack_layers`` makes them.

    Args:
      config: Architecture.
      execution: Precision and attention implementation.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        self.stacked = Block(config, execution, rngs)


def _rematerialize(function: Callable[..., Any], policy: str) -> Callable[..., Any]:
    if policy == "full":
        return jax.checkpoint(function)
    if policy == "dots":
        return jax.checkpoint(function, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
    return function  # none; and attention, which Block recomputes


class Encoder(nnx.Module):
    """A stack of blocks.

    Args:
      config: Architecture.
      execution: How it is run.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        self.execution = execution
        self.layers: Any
        if execution.scan_layers:
            self.layers = StackedBlock(config, execution, rngs)
        else:
            self.layers = nnx.List([Block(config, execution, rngs) for _ in range(config.num_hidden_layers)])

    def __call__(
        self,
        hidden: Float[Array, "batch length embed"],
        segment_ids: Int[Array, "batch length"],
        packed: bool,
        key: Any,
        keep_hidden: bool = False,
        first_only: bool = False,
    ) -> tuple[Float[Array, "batch tokens embed"], tuple[Float[Array, "batch length embed"], ...] | None]:
        """Returns the last hidden states and, on request, those after the embeddings and every block.

        With ``first_only``, an unrolled last block computes what comes after its attention for the first token alone, and
        the last hidden states have length 1. Layers that are scanned are all alike and compute everything.
        """
        if self.execution.scan_layers:
            return self._run_scanned(hidden, segment_ids, packed, key, keep_hidden)
        return self._run_unrolled(hidden, segment_ids, packed, key, keep_hidden, first_only)

    def _step(self, graphdef: Any, packed: bool, first_only: bool = False) -> Callable[..., Any]:
        return _rematerialize(_applied(graphdef, packed, first_only), self.execution.remat)

    def _run_unrolled(
        self, hidden: Any, segment_ids: Any, packed: bool, key: Any, keep_hidden: bool, first_only: bool
    ) -> Any:
        kept = [hidden]
        for index, layer in enumerate(self.layers):
            first = first_only and index == len(self.layers) - 1
            if self.execution.remat in ("none", "attention"):
                hidden = layer(hidden, segment_ids, packed, fold(key, index), first)
            else:
                graphdef, state = nnx.split(layer)
                hidden = self._step(graphdef, packed, first)(state, hidden, segment_ids, fold(key, index))
            kept.append(hidden)
        return hidden, tuple(kept) if keep_hidden else None

    def _run_scanned(self, hidden: Any, segment_ids: Any, packed: bool, key: Any, keep_hidden: bool) -> Any:
        graphdef, state = nnx.split(self.layers.stacked)
        step = self._step(graphdef, packed)
        num_layers = jax.tree.leaves(state)[0].shape[0]

        def body(carry: jax.Array, inputs: tuple[Any, jax.Array]) -> tuple[jax.Array, jax.Array | None]:
            layer_state, index = inputs
            layer_key = fold(key, index)
            after = step(layer_state, carry, segment_ids, layer_key)
            return after, after if keep_hidden else None

        last, after = jax.lax.scan(body, hidden, (state, jnp.arange(num_layers, dtype=jnp.int32)))
        if not keep_hidden or after is None:
            return last, None
        return last, (hidden, *(after[index] for index in range(num_layers)))
