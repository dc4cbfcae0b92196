"""How much a loss depends on each head and neuron: first-order, from gradients of gates on labelled examples."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.core.arrays import Params, SparseArray
from flaxbert.core.trees import flatten_names, unflatten_names
from flaxbert.data.batches import evaluation_batches
from flaxbert.data.tokenization import TokenizedExamples
from flaxbert.errors import DataError
from flaxbert.train.losses import LossFunction
from flaxbert.transforms.units import Scores, UnitKind, Units

Gates = dict[str, dict[str, jax.Array]]


def apply_gates(params: Mapping[str, Any], units: Mapping[UnitKind, Units], gates: Mapping[str, Any]) -> Params:
    """Returns the tree with what each unit gives multiplied by its gate: the rows of the matrix that takes it.

    Args:
      params: Tree of named leaves, layers numbered.
      units: Heads and neurons of the tree.
      gates: Factor of each unit, by kind and block.
    """
    leaves = flatten_names(params)
    for kind, found in units.items():
        for block in found.blocks:
            name = block.reader.leaf
            leaf = leaves[name]
            rows = jnp.repeat(gates[kind][block.name], leaf.shape[0] // block.num_units)[:, None]
            if isinstance(leaf, SparseArray):
                leaves[name] = dataclasses.replace(leaf, values=leaf.values * rows)
            else:
                leaves[name] = leaf * rows
    return unflatten_names(leaves)


def _sums(
    forward: Callable[..., Any], loss: LossFunction, units: Mapping[UnitKind, Units], params: Any, batch: Any
) -> Gates:
    """Returns the sum over the rows of a batch of the magnitude of each gate's gradient."""
    gates = {
        kind: {block.name: jnp.ones(block.num_units, jnp.float32) for block in found.blocks}
        for kind, found in units.items()
    }

    def loss_of(gates: Gates, row: Any) -> jax.Array:
        total, weight = loss(forward(apply_gates(params, units, gates), row), row)
        return total / jnp.maximum(weight, 1e-30)

    def one(row: Any) -> Any:
        gradients = jax.grad(loss_of)(gates, jax.tree.map(lambda array: array[None], row))
        return jax.tree.map(jnp.abs, gradients)

    return jax.tree.map(lambda array: jnp.sum(array, axis=0), jax.lax.map(one, batch))


def unit_importance(
    forward: Callable[..., Any],
    params: Mapping[str, Any],
    units: Mapping[UnitKind, Units],
    examples: TokenizedExamples,
    loss: LossFunction,
    *,
    length_buckets: Sequence[int] = (),
    batch_size: int = 16,
) -> dict[UnitKind, Scores]:
    """Returns the expected magnitude of the derivative of the loss by the gate of each head or neuron, where all gates are 1.

    ``I = E |dL / dg|`` over examples (Michel, Levy and Neubig, 2019, section 4.1, for heads; Molchanov et al., 2017, for neurons). A
    gate multiplies what a unit gives, hence the rows of the matrix that takes it, and its derivative is the sum of these rows times their
    gradient: the change of the loss, to first order, were the unit removed.

    Args:
      forward: ``forward(params, batch)``, returns what the loss takes.
      params: Tree of named leaves, layers numbered.
      units: Heads and neurons of the tree.
      examples: Tokenized examples with labels.
      loss: Weighted sum of losses and of weights of a batch.
      length_buckets: Lengths in tokens that examples are padded to.
      batch_size: Examples that are handed to the device together; they are computed one by one.

    Returns:
      One score per unit and block, by kind.

    Raises:
      DataError: There are no examples, or the gradients are not finite.
    """
    if not len(examples):
        raise DataError("There are no examples to measure importance on; name a file that holds some (--examples).")
    program = jax.jit(functools.partial(_sums, forward, loss, units))
    total: Any = None
    for batch in evaluation_batches(examples, min(batch_size, len(examples)), length_buckets):
        found = jax.device_get(program(params, {name: jnp.asarray(rows) for name, rows in batch.items()}))
        total = found if total is None else jax.tree.map(np.add, total, found)
    scores = jax.tree.map(lambda array: np.asarray(array, np.float64) / len(examples), total)
    if not all(np.isfinite(array).all() for array in jax.tree.leaves(scores)):
        raise DataError(
            "The gradients on these examples are not finite, so that they rank nothing; is the model sound?"
        )
    return scores
