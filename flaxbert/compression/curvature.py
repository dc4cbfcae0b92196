"""How sharply the loss rises around a model's weights: top eigenvalues of the Hessian, block by block."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.architecture import Execution
from flaxbert.core.arrays import TypedArray
from flaxbert.core.trees import flatten_names, is_stacked, unflatten_names
from flaxbert.data.batches import collate
from flaxbert.data.tokenization import TokenizedExamples
from flaxbert.errors import ConfigError, DataError
from flaxbert.families.graph import forward, graph_definition
from flaxbert.model import Model
from flaxbert.train.losses import loss_for

NUM_ITERATIONS = 8
"""Products with the Hessian for each block and part of the data: the top eigenvalue is far above the others, so few find it."""

NUM_PARTS = 2
"""Parts of the data whose eigenvalues are compared."""

PART_SIZE = 32
"""Examples of a part."""

_BLOCK = re.compile(r"^(.*\.(?:layers|groups)\.\d+)\.")


def block_of(name: str) -> str:
    """Returns the block that a leaf belongs to: its layer, or the leaf itself.

    Args:
      name: Dotted leaf name.

    Example:
      >>> block_of("encoder.layers.3.feed_forward.up.kernel"), block_of("embeddings.word.embedding")
      ('encoder.layers.3', 'embeddings.word.embedding')
    """
    match = _BLOCK.match(name)
    return match[1] if match else name


def _parts_of(
    model: Model, features: TokenizedExamples, num_parts: int, part_size: int, seed: int
) -> list[dict[str, np.ndarray]]:
    """Returns batches of one shape with labels, drawn without repetition."""
    if len(features) < num_parts:
        raise DataError(
            f"Curvature is measured on {num_parts} parts of the data, but there are {len(features)} examples."
        )
    part_size = min(part_size, len(features) // num_parts)
    rows = np.random.default_rng(seed).permutation(len(features))[: num_parts * part_size].reshape(num_parts, -1)
    length = min(int(features.lengths[rows].max()), model.max_length)
    return [collate(features, part, length) for part in rows]


def _hessian_product(model: Model) -> Callable[..., dict[str, jax.Array]]:
    """Returns a compiled ``(leaves of a block, other leaves, batch, vector) -> Hessian of the mean loss times the vector``.

    All gradients are those of the block alone, so nothing below it is gone back to. They are taken backwards twice: the layers have rules of their own
    for going back, which can not be gone through forwards.
    """
    graphdef = graph_definition(model.config, model.task, Execution(attention="xla"))
    loss = loss_for(model.task, model.config.problem_type)

    def mean_loss(leaves: Mapping[str, Any], others: Mapping[str, Any], batch: Mapping[str, Any]) -> jax.Array:
        output = forward(graphdef, unflatten_names({**others, **leaves}), batch)
        total, weight = loss(output, batch)
        return total / jnp.maximum(weight, 1e-30)

    def slope(leaves: Any, others: Any, batch: Any, vector: Mapping[str, jax.Array]) -> jax.Array:
        gradient = jax.grad(mean_loss)(leaves, others, batch)
        return sum((jnp.vdot(gradient[name], vector[name]) for name in leaves), jnp.float32(0.0))

    return jax.jit(jax.grad(slope))


def _length(vector: Mapping[str, jax.Array]) -> jax.Array:
    return jnp.sqrt(sum((jnp.vdot(part, part) for part in vector.values()), jnp.float32(0.0)))


def _top_eigenvalue(
    product: Callable[[Mapping[str, jax.Array]], Mapping[str, jax.Array]],
    start: Mapping[str, jax.Array],
    num_iterations: int,
) -> float:
    """Returns the largest magnitude of an eigenvalue by power iteration, as the length of the last product.

    A Rayleigh quotient would not do: where the largest eigenvalues of both signs are alike, it ends anywhere between them.
    """
    image, length = dict(start), _length(start)
    for _ in range(num_iterations):
        image = product({name: part / jnp.maximum(length, jnp.float32(1e-30)) for name, part in image.items()})
        length = _length(image)
    return float(length)


def _checked_leaves(model: Model, features: TokenizedExamples, names: Sequence[str]) -> dict[str, Any]:
    if is_stacked(model.params):
        raise ConfigError("The layers of the model are stacked; measure its curvature with scan_layers false.")
    if features.labels is None and "labels" not in features.token_values:
        raise DataError("The examples have no labels, without which there is no loss.")
    leaves = flatten_names(model.params)
    typed = next((name for name in names if isinstance(leaves[name], TypedArray)), None)
    if typed is not None:
        raise ConfigError(f"'{typed}' is a {leaves[typed].kind} leaf; curvature is measured of float models.")
    return leaves


def measure_curvature(
    model: Model,
    features: TokenizedExamples,
    names: Sequence[str],
    *,
    num_iterations: int = NUM_ITERATIONS,
    num_parts: int = NUM_PARTS,
    part_size: int = PART_SIZE,
    seed: int = 0,
) -> dict[str, float]:
    """Returns the sensitivity of every block of leaves: mean magnitude plus deviation of its top eigenvalues over parts of the data.

    The Hessian of the mean loss with regard to the leaves of one block alone (a layer, or a leaf outside of layers) is never formed: its products with a vector
    are gradients of a gradient, and power iteration finds the eigenvalue of largest magnitude (Shen et al., 2020, section 3.1 and equation 3).

    Args:
      model: A model with a task that has a loss, layers not stacked, float leaves.
      features: Encoded examples with labels.
      names: Leaves that are asked about.
      num_iterations: Products for each block and part.
      num_parts: Parts of the data.
      part_size: Examples of each part.
      seed: Draws the parts and the first vectors.

    Returns:
      Sensitivity by block.

    Raises:
      DataError: There are too few examples, or none with labels.
      ConfigError: Layers are stacked, leaves are typed, or the task has no loss.
    """
    leaves = _checked_leaves(model, features, names)
    placed = jax.device_put({name: np.asarray(leaf, np.float32) for name, leaf in leaves.items()})
    generator = np.random.default_rng(seed)
    blocks: dict[str, list[str]] = {}
    for name in names:
        blocks.setdefault(block_of(name), []).append(name)
    batches = [
        {name: jnp.asarray(array) for name, array in batch.items() if array is not None}
        for batch in _parts_of(model, features, num_parts, part_size, seed)
    ]
    found: dict[str, float] = {}
    product = _hessian_product(model)
    for block, own in blocks.items():
        chosen = {name: placed[name] for name in own}
        others = {name: leaf for name, leaf in placed.items() if name not in chosen}
        values = []
        for batch in batches:
            drawn = {
                name: jnp.asarray(generator.standard_normal(leaf.shape, np.float32)) for name, leaf in chosen.items()
            }
            multiply = functools.partial(product, chosen, others, batch)
            values.append(_top_eigenvalue(multiply, drawn, num_iterations))
        found[block] = float(np.mean(values) + np.std(values))
    return found
