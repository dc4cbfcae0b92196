"""The typed leaf of movement pruning: weights with scores that training moves, and the mask that follows from them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.core.arrays import SparseArray, TypedArray
from flaxbert.errors import ShapeError


def spread(blocks: Any, shape: tuple[int, ...]) -> Any:
    """Returns an array ``[..., rows, columns]`` with one entry for each block of the last two axes, spread over the blocks' entries.

    Args:
      blocks: One entry per block.
      shape: Shape of the whole array.
    """
    rows, columns = shape[-2] // blocks.shape[-2], shape[-1] // blocks.shape[-1]
    library = np if isinstance(blocks, np.ndarray) else jnp
    if rows > 1:
        blocks = library.repeat(blocks, rows, axis=-2)
    return library.repeat(blocks, columns, axis=-1) if columns > 1 else blocks


def gather(entries: jax.Array, blocks: tuple[int, ...]) -> jax.Array:
    """Returns the sum of the entries of each block of the last two axes.

    Args:
      entries: ``[..., in, out]``.
      blocks: Shape of the result, ``[..., rows, columns]``.
    """
    if tuple(entries.shape) == tuple(blocks):
        return entries
    rows, columns = blocks[-2:]
    cut = entries.reshape(*entries.shape[:-2], rows, entries.shape[-2] // rows, columns, entries.shape[-1] // columns)
    return jnp.sum(cut, axis=(-3, -1))


@functools.partial(jax.custom_vjp, nondiff_argnums=())
def straight_through(values: jax.Array, scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns ``values * mask``, whose gradient passes the mask straight through to the scores (Sanh, Wolf and Rush, 2020, equation 2).

    ``dL/dvalues = dL/ddense * mask`` and ``dL/dscores = sum over a block of dL/ddense * values``.

    Args:
      values: The weights, ``[..., in, out]``.
      scores: One score per block; they do not enter the result.
      mask: Which blocks stay, of the scores' shape.
    """
    del scores
    return jnp.where(spread(mask, values.shape), values, jnp.zeros((), values.dtype))


def _forward(values: jax.Array, scores: jax.Array, mask: jax.Array) -> tuple[jax.Array, Any]:
    return straight_through(values, scores, mask), (values, scores, mask)


def _backward(residuals: Any, cotangent: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    values, scores, mask = residuals
    kept = jnp.where(spread(mask, values.shape), cotangent, jnp.zeros((), cotangent.dtype))
    return kept, gather(cotangent * values, scores.shape).astype(scores.dtype), None


straight_through.defvjp(_forward, _backward)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MovementArray(TypedArray, kind="movement", parts=("values", "scores", "mask"), computes_in=""):
    """A matrix in training whose blocks have scores; those with low scores are masked, and may come back.

    ``dense = values * mask``. Values and scores are trained; training sets the mask.

    Attributes:
      values: The weights, ``[..., in, out]``.
      scores: One per block of weights, ``[..., in / height, out / width]``; a block may be a single weight.
      mask: bool of the scores' shape; False where the block is masked.
    """

    values: Any
    scores: Any
    mask: Any

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the values."""
        return np.dtype(self.values.dtype)

    def materialize(self) -> jax.Array:
        """Returns the values with masked blocks set to zero."""
        return straight_through(jnp.asarray(self.values), jnp.asarray(self.scores), jnp.asarray(self.mask))

    def validate(self, name: str = "leaf") -> None:
        """Checks that scores and mask have one shape whose blocks divide the values, and that the mask is boolean."""
        values, scores, mask = (tuple(part.shape) for part in (self.values, self.scores, self.mask))
        divides = len(values) == len(scores) and all(v % s == 0 for v, s in zip(values, scores, strict=True))
        if scores != mask or not divides or values[:-2] != scores[:-2]:
            raise ShapeError(f"{name}@scores {scores} and {name}@mask {mask} are no blocks of {name}@values {values}.")
        if jnp.dtype(self.mask.dtype) != jnp.dtype(bool):
            raise ShapeError(f"{name}@mask has dtype {self.mask.dtype}, but a mask is boolean.")

    def settle(self) -> SparseArray:
        """Returns the leaf once its mask is final: the weights with their zeros, without scores."""
        mask = spread(np.asarray(self.mask), tuple(self.values.shape))
        values = np.asarray(self.values)
        return SparseArray(values=np.where(mask, values, np.zeros((), values.dtype)), mask=np.ascontiguousarray(mask))
