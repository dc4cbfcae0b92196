"""Meshes and shardings of plain and typed leaves, on 8 virtual devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.config import MeshConfig
from flaxbert.core.arrays import QuantizedArray, SparseArray
from flaxbert.core.sharding import (
    MESH_AXES,
    batch_shardings,
    batch_share,
    build_mesh,
    bytes_per_device,
    check_mesh_fits,
    leaf_sharding,
    param_shardings,
    place_batch,
    replicated,
    shard,
)
from flaxbert.core.trees import flatten_parts, same_structure, size_bytes
from flaxbert.errors import MeshError
from flaxbert.families import FAMILIES, get_family
from flaxbert.families.graph import abstract_params

SMALL = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 12,
    "num_labels": 3,
}


def mesh(data=0, fsdp=1, tensor=1, sequence=1):
    return build_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor, sequence=sequence))


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ((0, 1, 1), (8, 1, 1, 1)),
        ((0, 2, 2), (2, 2, 1, 2)),
        ((1, 4, 2), (1, 4, 1, 2)),
        ((0, 1, 8), (1, 1, 1, 8)),
        ((0, 8, 1), (1, 8, 1, 1)),
        ((0, 1, 2, 4), (1, 1, 4, 2)),
    ],
)
def test_a_mesh_covers_all_devices_and_data_takes_the_rest(axes, expected):
    built = mesh(*axes)
    assert built.axis_names == MESH_AXES
    assert tuple(built.shape.values()) == expected
    assert len(set(built.devices.flat)) == 8
    assert set(built.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize("axes", [(3, 1, 1, 1), (0, 3, 1, 1), (2, 2, 1, 1), (0, 4, 4, 1), (16, 1, 1, 1), (1, 2, 2, 4)])
def test_axes_whose_product_is_not_the_number_of_devices_are_refused(axes):
    with pytest.raises(MeshError, match=f"fsdp {axes[1]} x sequence {axes[3]} x tensor {axes[2]} does not cover 8"):
        mesh(*axes)


def test_a_batch_that_can_not_be_split_is_refused_with_one_that_can():
    with pytest.raises(MeshError, match=r"batch of 10 .* = 4 devices; use (8|12)"):
        check_mesh_fits(mesh(2, 2, 2), ModelConfig(**SMALL), 10)


@pytest.mark.parametrize(
    ("axes", "changes", "field"),
    [
        ((1, 1, 8), {}, "num_attention_heads 4 is not divisible by mesh.tensor 8; use mesh.tensor 4"),
        ((4, 1, 2), {"intermediate_size": 33}, "intermediate_size 33 .* mesh.tensor 2; use mesh.tensor 1"),
        ((1, 8, 1), {"hidden_size": 12}, "hidden_size 12 .* mesh.fsdp 8; use mesh.fsdp 6"),
    ],
)
def test_sizes_that_can_not_be_split_are_refused_with_ones_that_can(axes, changes, field):
    with pytest.raises(MeshError, match=field):
        check_mesh_fits(mesh(*axes), ModelConfig(**{**SMALL, **changes}), 8)


def test_a_model_that_fits_passes():
    check_mesh_fits(mesh(2, 2, 2), ModelConfig(**SMALL), 8)
    check_mesh_fits(mesh(2, 1, 1, 4), ModelConfig(**SMALL), 8, (4, 12))


def test_rows_that_can_not_be_split_are_refused_with_ones_that_can():
    with pytest.raises(MeshError, match=r"Rows of 10 tokens .* mesh.sequence 4.* such as 12"):
        check_mesh_fits(mesh(2, 1, 1, 4), ModelConfig(**SMALL), 8, (8, 10))
    with pytest.raises(MeshError, match=r"Rows of 5 tokens .* mesh.sequence 4.* such as 8"):
        place_batch({"input_ids": np.zeros((8, 5), np.int32)}, mesh(2, 1, 1, 4))


def test_parts_of_a_quantized_kernel_are_split_each_by_its_own_shape():
    leaf = QuantizedArray(np.zeros((16, 32), np.int8), np.ones((1, 32), np.float32))
    shardings = leaf_sharding("up.kernel", leaf, ("embed", "mlp"), mesh(2, 2, 2))
    assert shardings.codes.spec == PartitionSpec("fsdp", "tensor")
    assert shardings.scale.spec == PartitionSpec(None, "tensor")


def test_parts_of_a_quantized_table_and_a_sparse_kernel():
    table = QuantizedArray(np.zeros((30, 16), np.int8), np.ones((30, 1), np.float32))
    shardings = leaf_sharding("word.embedding", table, ("vocab", "embed"), mesh(2, 2, 2))
    assert (shardings.codes.spec, shardings.scale.spec) == (
        PartitionSpec("tensor", "fsdp"),
        PartitionSpec("tensor", None),
    )
    kernel = SparseArray(np.zeros((16, 32), np.float32), np.ones((16, 32), bool))
    shardings = leaf_sharding("up.kernel", kernel, ("embed", "mlp"), mesh(2, 2, 2))
    assert shardings.values.spec == shardings.mask.spec == PartitionSpec("fsdp", "tensor")


def test_stacked_leaves_keep_their_layers_whole():
    leaf = QuantizedArray(np.zeros((3, 16, 32), np.int8), np.ones((3, 1, 32), np.float32))
    shardings = leaf_sharding("up.kernel", leaf, ("layers", "embed", "mlp"), mesh(2, 2, 2))
    assert shardings.codes.spec == PartitionSpec(None, "fsdp", "tensor")
    assert shardings.scale.spec == PartitionSpec(None, None, "tensor")


def test_an_odd_vocabulary_stays_whole_and_another_odd_axis_is_refused():
    table = np.zeros((31, 16), np.float32)
    assert leaf_sharding("t", table, ("vocab", "embed"), mesh(2, 2, 2)).spec == PartitionSpec(None, "fsdp")
    with pytest.raises(MeshError, match=r"Axis 'mlp' of 'up.bias' has size 33.*mesh.tensor 2"):
        leaf_sharding("up.bias", np.zeros(33), ("mlp",), mesh(2, 2, 2))


def test_axes_that_do_not_fit_the_leaf_are_refused():
    with pytest.raises(MeshError, match=r"'up.bias' has shape \(32,\).*'embed', 'mlp'"):
        leaf_sharding("up.bias", np.zeros(32), ("embed", "mlp"), mesh())


def test_a_leaf_without_axes_is_named():
    with pytest.raises(MeshError, match=r"'other'"):
        param_shardings({"other": np.zeros(2)}, {}, mesh())


PLACED = [("bert", task) for task in get_family("bert").architectures]
PLACED += [
    (family, task) for family in FAMILIES if family != "bert" for task in ("fill-mask", "sequence-classification")
]


def test_a_mesh_axis_splits_one_axis_of_a_leaf():
    sharding = leaf_sharding("project.kernel", np.zeros((8, 16)), ("embedding", "embed"), mesh(1, 4, 2))
    assert sharding.spec == PartitionSpec("fsdp", None)


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize(("family", "task"), PLACED)
def test_every_parameter_can_be_placed_and_is_really_split(family, task, scanned):
    config = ModelConfig(family=family, **{**SMALL, **({"num_labels": 1} if task == "multiple-choice" else {})})
    structs = abstract_params(config, task, Execution(scan_layers=scanned))
    params = jax.tree.map(lambda struct: np.ones(struct.shape, struct.dtype), structs)
    built = mesh(1, 4, 2)
    leaf_axes = get_family(family).parameter_axes(list(flatten_parts(params)))
    placed = shard(params, param_shardings(params, leaf_axes, built))
    assert same_structure(placed, params)
    assert all(np.asarray(array).min() == 1 for array in jax.tree.leaves(placed))
    sizes = bytes_per_device(placed)
    assert len(sizes) == 8
    assert len(set(sizes.values())) == 1
    assert max(sizes.values()) < size_bytes(params) / 3


def test_typed_leaves_keep_their_values_on_the_mesh():
    codes = np.arange(16 * 32).reshape(16, 32).astype(np.int8)
    params = {"up": {"kernel": QuantizedArray(codes, np.full((1, 32), 2.0, np.float32))}}
    placed = shard(params, param_shardings(params, {"up.kernel": ("embed", "mlp")}, mesh(2, 2, 2)))
    leaf = placed["up"]["kernel"]
    np.testing.assert_array_equal(leaf.materialize(), codes.astype(np.float32) * 2)
    assert leaf.codes.addressable_shards[0].data.shape == (8, 16)
    assert set(bytes_per_device(placed).values()) == {8 * 16 + 16 * 4}


def test_a_batch_is_split_over_data_and_fsdp_but_not_tensor():
    rows = np.arange(8 * 5, dtype=np.int32).reshape(8, 5)
    placed = place_batch({"input_ids": rows, "weight": rows[:, 0]}, mesh(2, 2, 2))
    np.testing.assert_array_equal(placed["input_ids"], rows)
    assert {shard.data.shape for shard in placed["input_ids"].addressable_shards} == {(2, 5)}
    assert {shard.data.shape for shard in placed["weight"].addressable_shards} == {(2,)}


def test_tokens_of_a_row_are_split_over_sequence_and_nothing_else_is():
    batch = {
        "input_ids": np.arange(4 * 8, dtype=np.int32).reshape(4, 8),
        "labels": np.zeros((4, 8), np.int32),
        "masked_positions": np.zeros((4, 3), np.int32),
        "example_weight": np.ones(4, np.float32),
    }
    specs = {name: sharding.spec for name, sharding in batch_shardings(batch, mesh(2, 1, 1, 4)).items()}
    rows = ("data", "fsdp")
    assert specs == {
        "input_ids": PartitionSpec(rows, "sequence"),
        "labels": PartitionSpec(rows, "sequence"),
        "masked_positions": PartitionSpec(rows),
        "example_weight": PartitionSpec(rows),
    }
    placed = place_batch(batch, mesh(2, 1, 1, 4))
    np.testing.assert_array_equal(placed["input_ids"], batch["input_ids"])
    assert {shard.data.shape for shard in placed["input_ids"].addressable_shards} == {(2, 2)}
    choices = batch_shardings({"input_ids": np.zeros((4, 2, 8), np.int32)}, mesh(2, 1, 1, 4))
    assert choices["input_ids"].spec == PartitionSpec(rows, None, "sequence")


@dataclasses.dataclass(frozen=True)
class StandIn:
    """What a mesh reads of a device."""

    id: int
    process_index: int
    platform: str = "gpu"
    device_kind: str = "GPU"


def processes(shape, order):
    """A mesh whose devices belong to the processes of ``order``."""
    grid = np.empty(len(order), dtype=object)
    grid[:] = [StandIn(number, process) for number, process in enumerate(order)]
    return Mesh(grid.reshape(shape), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


@pytest.mark.parametrize(
    ("shape", "order", "shares"),
    [
        ((8, 1, 1, 1), [0, 0, 0, 0, 1, 1, 1, 1], [(0, 2), (1, 2)]),
        ((2, 2, 1, 2), [0, 0, 1, 1, 2, 2, 3, 3], [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ((2, 1, 1, 4), [0, 0, 1, 1, 2, 2, 3, 3], [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ((1, 1, 8, 1), [0, 0, 0, 0, 1, 1, 1, 1], [(0, 1), (0, 1)]),
        ((4, 1, 1, 1), [0, 1, 0, 1], [(0, 2), (1, 2)]),
    ],
)
def test_processes_read_the_rows_that_their_devices_hold(shape, order, shares, monkeypatch):
    for number, share in enumerate(shares):
        monkeypatch.setattr(jax, "process_index", lambda number=number: number)
        assert batch_share(processes(shape, order)) == share


@pytest.mark.parametrize(("shape", "order"), [((3, 1, 1, 2), [0, 0, 0, 1, 1, 1]), ((3, 1, 1, 1), [0, 0, 1])])
def test_processes_that_can_not_share_out_a_batch_are_refused(shape, order):
    with pytest.raises(MeshError, match=r"can not share out a batch over data 3 x fsdp 1"):
        batch_share(processes(shape, order))


def test_replicated_arrays_are_whole_everywhere():
    array = jax.device_put(jnp.arange(3), replicated(mesh(2, 2, 2)))
    assert {shard.data.shape for shard in array.addressable_shards} == {(3,)}


def test_bytes_per_device_ignores_host_arrays():
    assert bytes_per_device({"host": np.ones(4)}) == {}
