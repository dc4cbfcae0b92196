"""Which device stands where in a mesh: the fastest links for the axes that talk most, the slowest for ``data``.

Inside a slice all devices have fast links (ICI of TPUs, NVLink of GPUs); slices are joined by the data centre's network (DCN)
alone. The data axis, over which devices exchange one sum of gradients a step, runs over slices first.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxbert.errors import MeshError


def _attribute(device: Any, name: str) -> int:
    value = getattr(device, name, None)
    return 0 if value is None else int(value)


def count_slices(devices: Sequence[Any]) -> int:
    """Returns the number of slices that TPU devices belong to; 1 for other platforms.

    Args:
      devices: JAX devices.
    """
    if devices[0].platform != "tpu":
        return 1
    return len({_attribute(device, "slice_index") for device in devices})


def split_into_slices(devices: Sequence[Any], num_slices: int) -> list[list[Any]]:
    """Groups devices by the slice that they belong to.

    Devices that know their slice are grouped by it, others by their process, several processes to a slice where there are more.
    Virtual CPU devices of one process are cut into equal groups, so that a run over slices can be rehearsed on one machine.

    Args:
      devices: JAX devices.
      num_slices: Wanted number of slices.

    Returns:
      The devices of each slice, slices in the order of their numbers.

    Raises:
      MeshError: The devices do not form so many slices, or slices of different sizes.
    """
    for name in ("slice_index", "process_index"):
        groups: dict[int, list[Any]] = {}
        for device in devices:
            groups.setdefault(_attribute(device, name), []).append(device)
        if len(groups) > 1 and (name == "process_index" or len(groups) == num_slices):
            break
    granules = [groups[number] for number in sorted(groups)]
    if len(granules) == 1 and devices[0].platform == "cpu":
        granules = [[device] for device in devices]
    if len(granules) % num_slices:
        raise MeshError(
            f"mesh.slices is {num_slices}, but {len(devices)} devices form {len(granules)} {name.split('_')[0]} groups, which "
            f"can not be dealt out to {num_slices} slices evenly; set mesh.slices to the number of slices of the machine, or 1."
        )
    share = len(granules) // num_slices
    slices = [
        list(itertools.chain.from_iterable(granules[start : start + share])) for start in range(0, len(granules), share)
    ]
    sizes = sorted({len(members) for members in slices})
    if len(sizes) > 1:
        raise MeshError(
            f"The {num_slices} slices of mesh.slices have between {sizes[0]} and {sizes[-1]} devices; all must have as many."
        )
    return slices


def _arrange_slice(devices: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    grid = np.empty(len(devices), dtype=object)
    grid[:] = devices
    if devices[0].platform != "tpu":
        return grid.reshape(shape)
    from jax.experimental import mesh_utils

    try:
        return mesh_utils.create_device_mesh(shape, list(devices), allow_split_physical_axes=True)
    except (AssertionError, NotImplementedError, ValueError):  # part of a torus, or a shape that does not lie along it
        return grid.reshape(shape)


def arrange(devices: Sequence[Any], shape: tuple[int, ...], num_slices: int) -> np.ndarray:
    """Places devices on a grid whose first axis runs over slices before it runs inside them.

    TPU devices of a slice are placed along its torus (``jax.experimental.mesh_utils``), others in the order given.

    Args:
      devices: JAX devices.
      shape: Sizes of the axes, the one that talks least first.
      num_slices: Number of slices.

    Returns:
      Devices, an array of objects of that shape.

    Raises:
      MeshError: The slices do not divide the first axis, or the devices do not form such slices.
    """
    if num_slices == 1:
        return _arrange_slice(devices, shape)
    if shape[0] % num_slices:
        raise MeshError(
            f"mesh.data {shape[0]} is not divisible by the {num_slices} slices that it runs over; choose mesh.data as a multiple "
            f"of {num_slices} by making the other axes smaller, or set mesh.slices 1 to let any axis cross slices."
        )
    inner = (shape[0] // num_slices, *shape[1:])
    return np.concatenate([_arrange_slice(members, inner) for members in split_into_slices(devices, num_slices)])
