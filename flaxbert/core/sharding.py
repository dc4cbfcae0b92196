"""Meshes and shardings: which device holds which piece of which array.

Four physical axes, ``data``, ``fsdp``, ``sequence`` and ``tensor``. The batch is split over data and fsdp, the tokens of its rows
over sequence; parameters (and with them the optimizer state) are split over fsdp along ``embed`` and over tensor along heads,
feed-forward and vocabulary, as in Megatron-LM (Shoeybi et al., 2019) and ZeRO-3 (Rajbhandari et al., 2020). The compiler inserts
the collectives, but for those of attention over tokens of other devices, which ``nn.split_length`` writes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flaxbert.config import MeshConfig
from flaxbert.core import axes
from flaxbert.core.arrays import Params, TypedArray
from flaxbert.core.device_grid import arrange, count_slices
from flaxbert.core.trees import flatten_names, map_leaves
from flaxbert.errors import MeshError

DATA = "data"
FSDP = "fsdp"
SEQUENCE = "sequence"
TENSOR = "tensor"
MESH_AXES = (DATA, FSDP, SEQUENCE, TENSOR)
"""From the axis whose devices talk least to the one whose devices talk most, and get the shortest ways."""

LOGICAL_TO_PHYSICAL: dict[str, str | None] = {
    axes.EMBED: FSDP,
    axes.EMBEDDING: FSDP,
    axes.ATTENTION: TENSOR,
    axes.HEADS: TENSOR,
    axes.HEAD_DIM: None,
    axes.MLP: TENSOR,
    axes.VOCAB: TENSOR,
    axes.POSITIONS: None,
    axes.TOKEN_TYPES: None,
    axes.LAYERS: None,
    axes.LABELS: None,
    axes.POOLED: None,
    axes.PREDICTED: None,
    axes.NEXT_SENTENCE: None,
    axes.SPAN_ENDS: None,
    axes.SCORES: None,
    axes.RELATION: None,
    axes.PROJECTED: None,
}
"""The mesh axis over which each parameter axis is split; None, and an axis of one family alone, stays whole on every device."""

REPLICATE_IF_UNEVEN = frozenset({axes.VOCAB})
"""Axes that stay whole where their size is not divisible; vocabularies have odd sizes that a user can not choose."""

ROWS = (DATA, FSDP)
"""The axes that the rows of a batch are split over, the slower one first."""

BATCH_SPEC = PartitionSpec(ROWS)
"""Spec of every array whose first axis is the batch."""


def batch_ways(mesh: Mesh) -> int:
    """Returns over how many devices a batch is split.

    Args:
      mesh: The mesh.
    """
    return math.prod(mesh.shape[axis] for axis in ROWS)


def build_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges the devices as a (data, fsdp, sequence, tensor) mesh.

    Args:
      config: Sizes of the axes; ``data`` 0 takes what the other axes leave. ``slices`` 0 takes the slices of the devices.
      devices: Devices to arrange; None takes all of all processes.

    Returns:
      The mesh, with automatic axis types.

    Raises:
      MeshError: The product of the axes is not the number of devices, or data can not run over the slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    num_devices = len(devices)
    rest = config.fsdp * config.sequence * config.tensor
    data = config.data or num_devices // rest
    if data * rest != num_devices or data < 1:
        wanted = (
            f"data {config.data or 'auto'} x fsdp {config.fsdp} x sequence {config.sequence} x tensor {config.tensor}"
        )
        raise MeshError(
            f"The mesh {wanted} does not cover {num_devices} devices exactly; choose axes whose product is {num_devices}, "
            "for example --mesh.data 0 with fsdp * sequence * tensor dividing it."
        )
    shape = (data, config.fsdp, config.sequence, config.tensor)
    grid = arrange(devices, shape, config.slices or count_slices(devices))
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def check_mesh_fits(mesh: Mesh, config: Any, batch_size: int, lengths: Sequence[int] = ()) -> None:
    """Checks that model and batch can be split over a mesh.

    Args:
      mesh: The mesh.
      config: Model configuration with the fields that the axes name.
      batch_size: Examples per micro batch over all devices.
      lengths: Tokens of a row, for every shape of batch that there will be.

    Raises:
      MeshError: Batch, length, heads, feed-forward or hidden size are not divisible; says by what and the nearest that is.
    """
    shape = dict(mesh.shape)
    batch_ways = shape[DATA] * shape[FSDP]
    if batch_size % batch_ways:
        nearest_size = max(batch_ways, round(batch_size / batch_ways) * batch_ways)
        raise MeshError(
            f"A batch of {batch_size} can not be split over data x fsdp = {batch_ways} devices; use {nearest_size}."
        )
    for length in lengths:
        _check_length(length, mesh)
    sizes = [
        (field, getattr(layer, field), TENSOR)
        for layer in config.layer_sizes
        for field in ("num_attention_heads", "intermediate_size")
    ]
    sizes += [(field, getattr(config, field), FSDP) for field in ("hidden_size", "embedding_width")]
    for field, size, axis in sizes:
        if size % shape[axis]:
            fits = [ways for ways in range(1, shape[axis]) if size % ways == 0]
            raise MeshError(
                f"{field} {size} is not divisible by mesh.{axis} {shape[axis]}; use mesh.{axis} {fits[-1]}."
            )


def _check_length(length: int, mesh: Mesh) -> None:
    ways = mesh.shape[SEQUENCE]
    if length % ways:
        raise MeshError(
            f"Rows of {length} tokens can not be split over mesh.sequence {ways}; use lengths that are multiples of {ways}, such "
            f"as {-(-length // ways) * ways}."
        )


def _axis_spec(axis: str, size: int, mesh: Mesh, name: str) -> str | None:
    physical = LOGICAL_TO_PHYSICAL.get(axis)
    if physical is None or mesh.shape[physical] == 1:
        return None
    if size % mesh.shape[physical] == 0:
        return physical
    if axis in REPLICATE_IF_UNEVEN:
        return None
    raise MeshError(
        f"Axis '{axis}' of '{name}' has size {size}, which is not divisible by mesh.{physical} {mesh.shape[physical]}."
    )


def leaf_sharding(name: str, leaf: Any, leaf_axes: Sequence[str], mesh: Mesh) -> Any:
    """Returns the sharding of one leaf, part by part for typed leaves.

    Args:
      name: Name of the leaf, for messages.
      leaf: Array, shape struct or typed leaf.
      leaf_axes: Axis names of the logical array, with ``layers`` first where layers are stacked.
      mesh: The mesh.

    Returns:
      A ``NamedSharding``, or a typed leaf holding one per part; axes of a part that it does not divide stay whole.

    Raises:
      MeshError: An axis can not be split evenly.
    """
    if len(leaf_axes) != len(leaf.shape):
        raise MeshError(f"'{name}' has shape {leaf.shape}, but its axes are {tuple(leaf_axes)}.")
    specs: list[str | None] = []
    for axis, size in zip(leaf_axes, leaf.shape, strict=True):
        spec = _axis_spec(axis, size, mesh, name)
        specs.append(None if spec in specs else spec)  # a mesh axis can split one axis of a leaf only: the first

    def sharding(array: Any, axes: Sequence[int | None]) -> NamedSharding:
        # What does not divide an axis evenly, such as few groups of a quantized leaf, is whole on every device.
        own = [None if axis is None else specs[axis] for axis in axes]
        own = [None if spec and size % mesh.shape[spec] else spec for spec, size in zip(own, array.shape, strict=True)]
        return NamedSharding(mesh, PartitionSpec(*own))

    if isinstance(leaf, TypedArray):
        parts = leaf.stored_parts().items()
        return type(leaf)(**{part: sharding(array, leaf.logical_axes(part)) for part, array in parts})
    return sharding(leaf, range(len(specs)))


def param_shardings(params: Mapping[str, Any], leaf_axes: Mapping[str, Sequence[str]], mesh: Mesh) -> Params:
    """Returns a tree of shardings for a parameter tree.

    Args:
      params: Tree of arrays, shape structs or typed leaves.
      leaf_axes: Axis names by leaf name, from the family.
      mesh: The mesh.

    Returns:
      Tree of the same structure with a ``NamedSharding`` in place of every stored array.

    Raises:
      MeshError: A leaf has no axes, or an axis can not be split evenly.
    """
    missing = [name for name in flatten_names(params) if name not in leaf_axes]
    if missing:
        raise MeshError(f"No axis names are given for {missing[:5]}; the family's axes must name every leaf.")
    return map_leaves(lambda name, leaf: leaf_sharding(name, leaf, leaf_axes[name], mesh), params)


def shard(tree: Any, shardings: Any) -> Any:
    """Places every array of a tree by a tree of shardings; works over several processes.

    Args:
      tree: Tree of host or device arrays; every process holds the same values.
      shardings: Tree of shardings of the same structure.

    Returns:
      The tree on the devices.
    """

    def place(array: Any, sharding: NamedSharding) -> jax.Array:
        if jax.process_count() == 1:
            return jax.device_put(array, sharding)
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(place, tree, shardings)


def batch_shardings(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, NamedSharding]:
    """Returns how every array of a batch is split: its rows over data and fsdp, and over sequence what there is of every token.

    Args:
      batch: Arrays or shapes whose first axis is the batch; those whose last axis is as long as that of ``input_ids`` have an entry for
        each token.
      mesh: The mesh.

    Raises:
      MeshError: The tokens of a row can not be split evenly.
    """
    length = batch["input_ids"].shape[-1] if "input_ids" in batch else 0
    if length:
        _check_length(length, mesh)
    shardings: dict[str, NamedSharding] = {}
    for name, array in batch.items():
        by_token = mesh.shape[SEQUENCE] > 1 and len(array.shape) > 1 and array.shape[-1] == length
        rest = (None,) * (len(array.shape) - 2)
        spec = PartitionSpec(*BATCH_SPEC, *rest, SEQUENCE) if by_token else BATCH_SPEC
        shardings[name] = NamedSharding(mesh, spec)
    return shardings


def batch_share(mesh: Mesh) -> tuple[int, int]:
    """Returns which share of the rows of every batch this process reads, and how many shares there are.

    Processes whose devices hold parts of the same rows (where tensor or sequence cross processes) read the same share.

    Args:
      mesh: The mesh.

    Raises:
      MeshError: Processes hold different numbers of rows, or some of the same and some of other rows.
    """
    groups = mesh.devices.reshape(mesh.shape[DATA] * mesh.shape[FSDP], -1)
    held: dict[int, set[int]] = {}
    for number, members in enumerate(groups):
        for device in members:
            held.setdefault(device.process_index, set()).add(number)
    shares = sorted({tuple(sorted(numbers)) for numbers in held.values()})
    if len({len(share) for share in shares}) > 1 or sum(map(len, shares)) != len(groups):
        raise MeshError(
            f"The processes can not share out a batch over data {mesh.shape[DATA]} x fsdp {mesh.shape[FSDP]}: some hold parts of the "
            "same rows and of others besides. Choose sequence * tensor so that it divides the devices of a process, or is a "
            "multiple of them."
        )
    return shares.index(tuple(sorted(held[jax.process_index()]))), len(shares)


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts one process's share of a batch on the mesh, rows split over data and fsdp, tokens over sequence.

    Args:
      batch: Arrays whose first axis is this process's share of the batch (``batch_share``).
      mesh: The mesh.

    Returns:
      Global arrays.

    Raises:
      MeshError: The tokens of a row can not be split evenly.
    """
    shardings = batch_shardings(batch, mesh)
    if jax.process_count() == 1:
        return {name: jax.device_put(array, shardings[name]) for name, array in batch.items()}
    _, count = batch_share(mesh)
    return {
        name: jax.make_array_from_process_local_data(shardings[name], array, (array.shape[0] * count, *array.shape[1:]))
        for name, array in batch.items()
    }


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that keeps an array whole on every device.

    Args:
      mesh: The mesh.
    """
    return NamedSharding(mesh, PartitionSpec())


def bytes_per_device(tree: Any) -> dict[str, int]:
    """Returns the bytes that a tree of device arrays occupies on each local device, by device name."""
    totals: dict[str, int] = {}
    for array in jax.tree.leaves(tree):
        if not isinstance(array, jax.Array):
            continue
        for piece in array.addressable_shards:
            size = math.prod(piece.data.shape) * array.dtype.itemsize
            totals[str(piece.device)] = totals.get(str(piece.device), 0) + size
    return totals
