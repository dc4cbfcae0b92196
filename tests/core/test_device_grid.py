"""Places of devices in a mesh: slices outermost on the data axis, and what can not be dealt out."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.experimental import mesh_utils

from flaxbert.config import MeshConfig
from flaxbert.core.device_grid import arrange, count_slices, split_into_slices
from flaxbert.core.sharding import build_mesh
from flaxbert.errors import MeshError


@dataclasses.dataclass(frozen=True)
class StandIn:
    """What the placing of devices reads of one."""

    id: int
    platform: str = "tpu"
    slice_index: int | None = 0
    process_index: int = 0
    device_kind: str = "TPU v4"
    coords: tuple[int, int, int] = (0, 0, 0)
    core_on_chip: int = 0


def tpu_slices(num_slices, side=2):
    """Slices of side x side x 1 chips of TPU v4, one process each, given in a mixed order."""
    devices = []
    for index in range(num_slices):
        for chip in range(side * side):
            coords = (chip % side, chip // side, 0)
            devices.append(StandIn(len(devices), slice_index=index, process_index=index, coords=coords))
    return [devices[number] for number in np.random.default_rng(0).permutation(len(devices))]


def hosts(num_processes, devices_each, platform="gpu"):
    return [
        StandIn(number, platform, None, number // devices_each, "GPU") for number in range(num_processes * devices_each)
    ]


@pytest.mark.parametrize("shape", [(2, 4, 1, 1), (4, 1, 1, 2), (2, 1, 2, 2), (8, 1, 1, 1)])
def test_slices_lie_outermost_on_the_data_axis_as_jax_places_them(shape):
    devices = tpu_slices(2)
    assert count_slices(devices) == 2
    grid = arrange(devices, shape, 2)
    assert grid.shape == shape
    half = shape[0] // 2
    assert {device.slice_index for device in grid[:half].flat} == {0}
    assert {device.slice_index for device in grid[half:].flat} == {1}
    inner = (half, *shape[1:])
    theirs = mesh_utils.create_hybrid_device_mesh(inner, (2, 1, 1, 1), devices, allow_split_physical_axes=True)
    assert grid.tolist() == theirs.tolist()


def test_inside_a_slice_neighbours_on_the_innermost_axis_are_neighbours_on_the_torus():
    grid = arrange(tpu_slices(1, side=4), (1, 4, 1, 4), 1)
    for row in grid[0, :, 0]:
        assert len({device.coords[0] for device in row}) == 1 or len({device.coords[1] for device in row}) == 1


def test_part_of_a_slice_is_placed_in_the_order_given():
    devices = tpu_slices(1, side=4)[:6]
    assert arrange(devices, (6, 1, 1, 1), 1).ravel().tolist() == devices


def test_processes_stand_for_slices_where_devices_know_of_none():
    devices = hosts(4, 2)
    assert count_slices(devices) == 1
    assert [[device.id for device in members] for members in split_into_slices(devices, 2)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
    ]
    grid = arrange(devices, (4, 1, 1, 2), 4)
    assert [[device.process_index for device in row.flat] for row in grid] == [[0, 0], [1, 1], [2, 2], [3, 3]]


def test_virtual_devices_of_one_process_are_cut_into_equal_slices():
    mesh = build_mesh(MeshConfig(data=4, tensor=2, slices=2))
    assert dict(mesh.shape) == {"data": 4, "fsdp": 1, "sequence": 1, "tensor": 2}
    assert [device.id for device in mesh.devices.flat] == [device.id for device in jax.devices()]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(data=1, fsdp=8, slices=2), "mesh.data 1 is not divisible by the 2 slices.*multiple of 2"),
        (MeshConfig(data=2, fsdp=4, slices=4), "mesh.data 2 is not divisible by the 4 slices"),
    ],
)
def test_a_data_axis_that_can_not_run_over_the_slices_is_refused(config, message):
    with pytest.raises(MeshError, match=message):
        build_mesh(config)


def test_devices_that_form_other_slices_are_refused():
    with pytest.raises(MeshError, match="mesh.slices is 3, but 8 devices form 2 process groups"):
        split_into_slices(hosts(2, 4), 3)
    with pytest.raises(MeshError, match="mesh.slices is 2, but 4 devices form 1 process groups"):
        split_into_slices(hosts(1, 4), 2)
    with pytest.raises(MeshError, match="between 3 and 4 devices"):
        split_into_slices(tpu_slices(2)[:-1], 2)
