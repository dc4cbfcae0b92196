"""Networks as pure functions of parameter trees: graph definitions, shapes, new weights and the forward pass."""

import functools
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.core.arrays import Params
from flaxbert.core.trees import STACKED, flatten_names, map_leaves, stack_layers, unflatten_names
from flaxbert.errors import ShapeError
from flaxbert.families import get_family
from flaxbert.nn.network import ModelOutput

INPUT_NAMES = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "position_ids",
    "segment_ids",
    "task_type_ids",
    "entity_mask",
    "masked_positions",
    "first_positions",
)
"""The entries of a batch that a network reads; others (labels, weights) are for the loss."""


def _to_strings(tree: Mapping[Any, Any]) -> Params:
    return {str(key): _to_strings(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def _to_state(tree: Mapping[str, Any]) -> Any:
    def convert(node: Mapping[str, Any]) -> dict[Any, Any]:
        return {
            int(key) if key.isdigit() else key: convert(value) if isinstance(value, Mapping) else nnx.Param(value)
            for key, value in node.items()
        }

    return nnx.State(convert(tree))


class _Keys(nnx.RngStream):
    """The keys that ``nnx.RngStream`` gives, counted in Python.

    Its own counter is a variable; while tracing, each of its updates asks a tracer for a sharding that it has not, and the text
    of that error, which nobody reads, takes most of the time of building a network (flax 0.12, jax 0.10).
    """

    def __init__(self, key: jax.Array) -> None:
        super().__init__(key, tag="params")
        self.number = 0

    def __call__(self) -> jax.Array:
        """Returns the next key."""
        self.number += 1
        return jax.random.fold_in(self.key[...], np.uint32(self.number - 1))


class _Rngs(nnx.Rngs):
    """One such stream, for new weights."""

    def __init__(self, key: jax.Array) -> None:
        super().__init__()
        self.params = _Keys(key)


@functools.lru_cache(maxsize=512)
def _abstract(config: ModelConfig, task: str, execution: Execution) -> tuple[Any, Any]:
    build = get_family(config.family).network
    module = nnx.eval_shape(lambda: build(config, task, execution, _Rngs(jax.random.key(0))))
    return nnx.split(module)


def graph_definition(config: ModelConfig, task: str, execution: Execution) -> Any:
    """Returns the static part of a network; equal arguments give the same object.

    Args:
      config: Architecture.
      task: Canonical task name.
      execution: How the network is run.

    Returns:
      What ``forward`` takes beside parameters.
    """
    return _abstract(config, task, execution)[0]


def finishes_first_token_alone(config: ModelConfig, task: str, execution: Execution) -> bool:
    """Returns whether the last block computes what comes after its attention for the first token of each input only.

    Args:
      config: Architecture.
      task: Canonical task name.
      execution: How the network is run.
    """
    return nnx.merge(*_abstract(config, task, execution)).reads_first_token() and not execution.scan_layers


def abstract_params(config: ModelConfig, task: str, execution: Execution | None = None) -> Params:
    """Returns the shapes of a task's parameters without making any.

    Args:
      config: Architecture.
      task: Canonical task name.
      execution: Layers are stacked where it scans them; None: numbered layers.

    Returns:
      The parameter tree with ``jax.ShapeDtypeStruct`` leaves.
    """
    plain = _abstract(config, task, Execution())[1]
    params = map_leaves(
        lambda _, leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), _to_strings(nnx.to_pure_dict(plain))
    )
    return stack_layers(params) if execution is not None and execution.scan_layers else params


@functools.lru_cache(maxsize=16)
def _initializer(config: ModelConfig, task: str, names: frozenset[str] | None) -> Any:
    build = get_family(config.family).network

    def initialize(key: jax.Array) -> Params:
        module = build(config, task, Execution(), _Rngs(key))
        params = _to_strings(nnx.to_pure_dict(nnx.split(module)[1]))
        if names is None:
            return params
        return unflatten_names({name: leaf for name, leaf in flatten_names(params).items() if name in names})

    return jax.jit(initialize)


def initialize_params(config: ModelConfig, task: str, seed: int, names: Collection[str] | None = None) -> Params:
    """Draws new weights for a task, with numbered layers.

    Args:
      config: Architecture.
      task: Canonical task name.
      seed: Seed of the draw.
      names: Leaf names to draw; None for all. A leaf gets the same values whether or not others are drawn.

    Returns:
      float32 parameter tree.
    """
    chosen = None if names is None else frozenset(names)
    with jax.numpy_dtype_promotion("standard"):
        return _initializer(config, task, chosen)(jax.random.key(seed))


def forward(
    graphdef: Any,
    params: Mapping[str, Any],
    batch: Mapping[str, Any],
    *,
    dropout_key: Any = None,
    keep_hidden: bool = False,
    keep_attention: bool = False,
) -> ModelOutput:
    """Runs a network on a batch; a pure function that can be compiled, differentiated and sharded.

    Args:
      graphdef: From ``graph_definition``.
      params: Parameter tree, layers stacked or not as the graph definition asks.
      batch: ``input_ids`` and, optionally, ``attention_mask``, ``token_type_ids``, ``position_ids``, ``segment_ids``, ``task_type_ids``,
        ``entity_mask``, all int32 ``[batch, length]`` (multiple choice: ``[batch, choices, length]``), and ``masked_positions``
        ``[batch, slots]`` and ``first_positions`` ``[batch, segments]`` of pre-training.
      dropout_key: A JAX key, or None for no dropout.
      keep_hidden: Whether to return the hidden states after every block.
      keep_attention: Whether to return the queries, keys and values of every layer.

    Returns:
      The outputs that the task has.

    Raises:
      ShapeError: The batch has no ``input_ids``.
    """
    if "input_ids" not in batch:
        raise ShapeError(f"The batch has no 'input_ids'; it has {sorted(batch)}.")
    inputs = {name: jnp.asarray(batch[name]) for name in INPUT_NAMES if batch.get(name) is not None}
    network = nnx.merge(graphdef, _to_state(params))
    return network(**inputs, dropout_key=dropout_key, keep_hidden=keep_hidden, keep_attention=keep_attention)


__all__ = [
    "INPUT_NAMES",
    "STACKED",
    "abstract_params",
    "finishes_first_token_alone",
    "forward",
    "graph_definition",
    "initialize_params",
]
