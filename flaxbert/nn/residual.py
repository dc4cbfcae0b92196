"""The residual stream of blocks that normalise what they read instead of what they write."""

import jax
from jaxtyping import Array, Float

from flaxbert.core.reductions import compute_once


@jax.custom_vjp
def add_residual(
    hidden: Float[Array, "*batch embed"], update: Float[Array, "*batch embed"]
) -> Float[Array, "*batch embed"]:
    """Returns the sum, computed once: without norms between them, sums would be added up anew in every layer.

    Args:
      hidden: The residual stream.
      update: What a half of a block adds to it.
    """
    return compute_once(hidden + update)


def _forward(hidden: jax.Array, update: jax.Array) -> tuple[jax.Array, None]:
    return compute_once(hidden + update), None


def _backward(_: None, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    cotangent = compute_once(cotangent)
    return cotangent, cotangent


add_residual.defvjp(_forward, _backward)
