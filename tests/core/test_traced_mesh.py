"""Which part of a batch code sees, on whole arrays and where axes are manual."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from flaxbert.config import MeshConfig
from flaxbert.core.sharding import DATA, FSDP, ROWS, TENSOR, build_mesh
from flaxbert.core.traced_mesh import automatic, part_number, rows_before, ways


def over(axes, function, *arrays, mesh=None):
    """Runs a function on the parts that arrays have over some axes, and puts its results together."""
    spec = PartitionSpec(axes)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, axis_names=set(axes), check_vma=False)
    return np.asarray(jax.jit(mapped)(*arrays))


@pytest.fixture(scope="module", name="mesh")
def mesh_of_three_axes():
    return build_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


def test_without_a_mesh_code_sees_all():
    assert ways(DATA, TENSOR) == 1
    assert automatic(DATA, FSDP) == (DATA, FSDP)
    assert rows_before(5) == 0


def test_on_a_mesh_code_still_sees_all(mesh):
    with jax.set_mesh(mesh):
        assert ways(*ROWS) == 4
        assert automatic(*ROWS) == ROWS
        assert rows_before(5) == 0


@pytest.mark.parametrize("axes", [(DATA,), (FSDP,), (DATA, FSDP)], ids=str)
def test_rows_are_counted_over_manual_axes(mesh, axes):
    rows = np.arange(8, dtype=np.int32)

    def count(part):
        assert set(automatic(*ROWS)) == set(ROWS) - set(axes)
        assert ways(*ROWS) == 4
        here = jnp.asarray(rows_before(part.shape[0])).astype(jnp.int32) + jnp.arange(part.shape[0], dtype=jnp.int32)
        return here - part

    np.testing.assert_array_equal(over(axes, count, rows, mesh=mesh), 0)


def test_parts_are_numbered_with_the_slowest_axis_first(mesh):
    numbers = over((TENSOR, DATA), lambda part: part_number((TENSOR, DATA)) + part, np.zeros(4, np.uint32), mesh=mesh)
    np.testing.assert_array_equal(numbers, [0, 1, 2, 3])
