"""What transforms of weights share: which axis of a leaf is contracted, and the way to the host and back."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from flaxbert.core.arrays import TypedArray, materialize
from flaxbert.errors import ConfigError, ShapeError, WeightsError

_CONTRACTED_AXIS = {"kernel": -2, "embedding": -1}


def contracted_axis(name: str, leaf: Any, purpose: str) -> int:
    """Returns the axis of a weight that products sum over: inputs of a kernel, the width of an embedding table.

    Args:
      name: Dotted leaf name; its last word tells kernels ``[..., in, out]`` from tables ``[rows, embed]``.
      leaf: The leaf.
      purpose: What is done to the leaf, for the message.

    Returns:
      -2 or -1.

    Raises:
      ShapeError: The leaf is no matrix that products are made with.
    """
    axis = _CONTRACTED_AXIS.get(name.rsplit(".", 1)[-1])
    if axis is None or leaf.ndim < 2:
        raise ShapeError(
            f"'{name}' of shape {tuple(leaf.shape)} can not get {purpose}: only kernels [in, out] and embedding tables "
            "[rows, embed] can. Let an earlier rule give this leaf the value None."
        )
    return axis


def host_weights(name: str, leaf: Any) -> np.ndarray:
    """Returns a leaf's dense weights on the host as float32.

    Args:
      name: Leaf name, for messages.
      leaf: Array or typed leaf.

    Raises:
      ConfigError: The leaf is spread over several processes.
      ShapeError: The leaf holds no floating-point numbers.
      WeightsError: A weight is NaN or infinite.
    """
    parts = leaf.stored_parts().values() if isinstance(leaf, TypedArray) else (leaf,)
    if any(isinstance(part, jax.Array) and not part.is_fully_addressable for part in parts):
        raise ConfigError(f"'{name}' is spread over several processes; compress the saved model in one process.")
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise ShapeError(f"'{name}' has dtype {leaf.dtype}, but only floating-point weights can be compressed.")
    weights = np.asarray(materialize(leaf)).astype(np.float32, copy=False)
    if not np.isfinite(weights).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(weights))[0])
        raise WeightsError(
            f"'{name}' has {np.count_nonzero(~np.isfinite(weights))} weights that are not finite, the first at {index} "
            f"({weights[index]}). The training that made them diverged; go back to a version before it."
        )
    return weights


def place_like(array: np.ndarray | jax.Array, leaf: Any, new_axis: int | None = None) -> Any:
    """Returns an array as ``leaf`` is: on the host, or on the same devices with the same sharding.

    Args:
      array: New part; axes of size 1 stay whole on every device, and axes that the devices no longer divide.
      leaf: The array (or typed leaf) that it comes from.
      new_axis: Axis of the part that the leaf has not, counted from the front; None for none.
    """
    like = next(iter(leaf.stored_parts().values())) if isinstance(leaf, TypedArray) else leaf
    if not isinstance(like, jax.Array):
        return array
    sharding = like.sharding
    if isinstance(sharding, NamedSharding):
        spec: list[Any] = [*sharding.spec, *([None] * (like.ndim - len(sharding.spec)))]
        if new_axis is not None:
            spec.insert(new_axis, None)
        own = [_fitting(axis, size, sharding) for axis, size in zip(spec, array.shape, strict=True)]
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*own))
    return jax.device_put(array, sharding)


def _fitting(entry: Any, size: int, sharding: NamedSharding) -> Any:
    """Returns an entry of a spec where its devices divide an axis, else None."""
    names = entry if isinstance(entry, tuple) else () if entry is None else (entry,)
    return entry if size % math.prod(sharding.mesh.shape[name] for name in names) == 0 else None
