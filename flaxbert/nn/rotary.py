"""Rotary positions: queries and keys turned by angles that grow with the token's position."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from flaxbert.core.reductions import compute_once
from flaxbert.errors import ConfigError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rotation:
    """The angles of a batch's tokens, the same for all heads.

    Attributes:
      cosine: float32 ``[batch or 1, 1, length, head_dim / 2]``.
      sine: As ``cosine``.
    """

    cosine: Any
    sine: Any


def check_head_dim(head_dim: int) -> None:
    """Refuses heads that can not be turned.

    Args:
      head_dim: Width of one head.

    Raises:
      ConfigError: The width is odd.
    """
    if head_dim % 2:
        raise ConfigError(f"Rotary positions turn pairs of columns, but a head has {head_dim}, an odd number.")


def rotation(positions: Int[Array, "batch length"], head_dim: int, theta: float) -> Rotation:
    """Returns the angles ``position * theta ** (-2 * pair / head_dim)`` (Su et al., 2021, section 3.2.2).

    Args:
      positions: Positions from 0.
      head_dim: Width of one head, an even number.
      theta: Base of the frequencies.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = (np.float32(1.0) / np.float32(theta) ** exponents).astype(np.float32)
    angles = positions.astype(jnp.float32)[:, None, :, None] * jnp.asarray(frequencies)
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def _turn(values: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
    half = values.shape[-1] // 2
    left, right = values[..., :half].astype(jnp.float32), values[..., half:].astype(jnp.float32)
    turned = jnp.concatenate([left * cosine - right * sine, right * cosine + left * sine], axis=-1)
    return compute_once(turned.astype(values.dtype))


def split_heads(
    joined: Float[Array, "batch heads length head_dim"], turned: Rotation
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns queries and keys, both turned, and values from the heads of one product.

    Args:
      joined: Heads of the queries, then of the keys, then of the values.
      turned: The angles.
    """
    heads = joined.shape[1] // 3
    queries, keys = joined[:, :heads], joined[:, heads : 2 * heads]
    return rotate(queries, turned), rotate(keys, turned), joined[:, 2 * heads :]


@jax.custom_vjp
def _rotate(values: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
    return _turn(values, cosine, sine)


def _rotate_forward(values: jax.Array, cosine: jax.Array, sine: jax.Array) -> tuple[jax.Array, Any]:
    return _turn(values, cosine, sine), (cosine, sine)


def _rotate_backward(residuals: Any, cotangent: jax.Array) -> tuple[jax.Array, None, None]:
    cosine, sine = residuals
    return _turn(cotangent, cosine, -sine), None, None


_rotate.defvjp(_rotate_forward, _rotate_backward)


def rotate(
    values: Float[Array, "batch heads length head_dim"], turned: Rotation
) -> Float[Array, "batch heads length head_dim"]:
    """Turns column ``i`` of every head together with column ``i + head_dim / 2``; the backward pass turns back.

    Args:
      values: Queries or keys.
      turned: The angles; they get no gradient.

    Returns:
      The turned values, in their type.
    """
    return _rotate(values, lax.stop_gradient(turned.cosine), lax.stop_gradient(turned.sine))
