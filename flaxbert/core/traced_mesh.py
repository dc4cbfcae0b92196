"""The mesh of the program that is being traced, and which part of its batch the code at hand sees.

The compiler splits a program over the mesh by itself, and code is written for whole arrays. Only where an axis is *manual*, inside of a
``jax.shard_map`` over it, code sees the part of one device.
"""

import jax
import jax.numpy as jnp
from jax import lax

from flaxbert.core.sharding import ROWS


def ways(*names: str) -> int:
    """Returns over how many devices axes split an array in all; 1 without a mesh.

    Args:
      *names: Axes of the mesh.
    """
    shape = jax.sharding.get_abstract_mesh().shape
    product = 1
    for name in names:
        product *= shape.get(name, 1)
    return product


def automatic(*names: str) -> tuple[str, ...]:
    """Returns those of some axes that the compiler splits, which is all but the manual ones.

    Args:
      *names: Axes of the mesh.
    """
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return tuple(name for name in names if name not in manual)


def part_number(names: tuple[str, ...]) -> jax.Array:
    """Returns the number of this device's part of an array, uint32.

    Args:
      names: Manual axes that the array is split over, the slowest first.
    """
    number = jnp.zeros((), jnp.uint32)
    for name in names:
        number = number * jnp.uint32(ways(name)) + lax.axis_index(name).astype(jnp.uint32)
    return number


def split_rows() -> tuple[str, ...]:
    """Returns the axes over which the batch was split before the code at hand sees its rows; none where it sees all."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return tuple(name for name in ROWS if name in manual)


def rows_before(rows: int) -> jax.Array | int:
    """Returns how many rows of the whole batch come before those that the code sees; 0 where it sees all.

    Args:
      rows: Rows that the code sees.
    """
    names = split_rows()
    return part_number(names) * jnp.uint32(rows) if names else 0
