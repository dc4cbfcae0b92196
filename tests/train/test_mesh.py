import functools
import json
import os
import re
import socket
import subprocess
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.architecture import Execution
from flaxbert.config import MeshConfig
from flaxbert.core.arrays import QuantizedArray
from flaxbert.core.collectives import find_collectives
from flaxbert.core.sharding import BATCH_SPEC, build_mesh, bytes_per_device, place_batch
from flaxbert.core.trees import map_leaves
from flaxbert.families.graph import abstract_params, forward, graph_definition
from flaxbert.nn.dropout import keep_mask
from flaxbert.train.losses import loss_for
from flaxbert.train.objectives import PretrainingLoss
from flaxbert.train.state import create_state, state_shardings
from flaxbert.train.step import make_train_step
from tests.helpers import ROOT, slow_unless
from tests.train.tiny_training import (
    CONFIG,
    DROPOUT_CONFIG,
    QUICK,
    TASK,
    leaf_axes,
    make_batch,
    make_forward,
    make_params,
    run_steps,
    tiny_optimizer,
)

ONE_LAYER = CONFIG.replace(num_hidden_layers=1)
ONE_LAYER_DROPOUT = DROPOUT_CONFIG.replace(num_hidden_layers=1)

SHAPES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (4, 2, 1), (2, 1, 4), (1, 4, 2), (1, 2, 1, 4), (1, 2, 2, 2)]
"""Sizes of data, fsdp, tensor and, where it is not 1, sequence."""

EVEN = [(1, 8, 1), (1, 2, 2, 2)]
DROPOUT_SHAPES = [(8, 1, 1), (1, 2, 4), (1, 2, 2, 2)]

LOSS_TOLERANCE = 2e-5
"""Relative, over 4 steps: devices add up float32 sums in another order."""

PARAMETER_TOLERANCE = 1e-4
"""Absolute, after 4 AdamW steps of 1e-2, which divide gradients near 0 by their own size."""


def as_mesh(shape):
    return MeshConfig(*shape)


@pytest.fixture(scope="module")
def one_device():
    return run_steps(config=ONE_LAYER)


@pytest.fixture(scope="module")
def one_device_with_dropout():
    return run_steps(config=ONE_LAYER_DROPOUT, dropout_seed=5)


def assert_same_training(ours, reference):
    np.testing.assert_allclose(ours[1], reference[1], rtol=LOSS_TOLERANCE)
    for group in ("trainable", "optimizer"):
        pairs = zip(
            jax.tree.leaves(getattr(ours[0], group)), jax.tree.leaves(getattr(reference[0], group)), strict=True
        )
        for mine, other in pairs:
            np.testing.assert_allclose(np.asarray(mine), np.asarray(other), rtol=0, atol=PARAMETER_TOLERANCE)


@pytest.mark.parametrize("shape", slow_unless(EVEN.__contains__, SHAPES), ids=str)
def test_every_mesh_trains_like_one_device(shape, one_device):
    ours = run_steps(config=ONE_LAYER, mesh_config=as_mesh(shape))
    assert_same_training(ours, one_device)
    state, _, shardings = ours
    for array, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
        assert array.sharding.is_equivalent_to(sharding, array.ndim)
    assert_split(state, shape)


def assert_split(state, shape):
    """Every device holds its part: kernels split over fsdp and tensor, nothing split over data and sequence."""
    _, fsdp, tensor = shape[:3]
    kernel = "encoder.layers.0.feed_forward.up.kernel"
    for leaf in (state.trainable[kernel], *(moments[kernel] for moments in state.optimizer.moments.values())):
        (size,) = {piece.data.size for piece in leaf.addressable_shards}
        assert size * fsdp * tensor == leaf.size
    pieces, total = bytes_per_device(state), sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert len(pieces) == 8
    assert len(set(pieces.values())) == 1
    # Biases, norms, positions and the head are split less or not at all.
    assert total / (fsdp * tensor) <= max(pieces.values()) < total / (fsdp * tensor) + 0.2 * total


def test_fsdp_puts_weights_together_and_leaves_the_batch_split():
    rows, length = 32, 12
    params, optimizer, mesh = make_params(ONE_LAYER), tiny_optimizer(), build_mesh(MeshConfig(fsdp=8))
    up, embedding = "encoder.layers.0.feed_forward.up.kernel", "embeddings.word.embedding"

    def quantize(name, leaf):
        if name != up:
            return leaf
        return QuantizedArray(np.ones(leaf.shape, np.int8), np.full((1, leaf.shape[1]), 1e-3, np.float32))

    params = map_leaves(quantize, params)
    axes = leaf_axes(params)
    state, kinds = create_state(params, (), optimizer, leaf_axes=axes, mesh=mesh)
    shardings = state_shardings(state, axes, mesh, kinds)
    step = make_train_step(make_forward(ONE_LAYER), loss_for(TASK), optimizer, kinds, shardings=shardings, mesh=mesh)
    with jax.set_mesh(mesh):
        compiled = step.lower(state, place_batch(make_batch(rows, length), mesh), None).compile(QUICK)
    collectives = re.findall(
        r"= \(?(\w+\[[\d,]*\]).* (?:all-gather|all-reduce|all-to-all|reduce-scatter)\(", compiled.as_text()
    )
    width, mlp = CONFIG.hidden_size, CONFIG.intermediate_size
    assert f"f32[{CONFIG.vocab_size},{width}]" in collectives
    assert f"s8[{width},{mlp}]" in collectives
    whole_batch = [f"f32[{rows},{length},{size}]" for size in (width, mlp, CONFIG.head_dim)]
    assert not set(whole_batch) & set(collectives)
    (local,) = {piece.data.shape for piece in state.trainable[embedding].addressable_shards}
    assert local == (CONFIG.vocab_size, width // 8)


@pytest.mark.parametrize("shape", slow_unless((1, 2, 2, 2).__eq__, DROPOUT_SHAPES), ids=str)
def test_dropout_masks_do_not_depend_on_the_mesh(shape, one_device_with_dropout, one_device):
    ours = run_steps(config=ONE_LAYER_DROPOUT, mesh_config=as_mesh(shape), dropout_seed=5)
    assert_same_training(ours, one_device_with_dropout)
    assert abs(ours[1][0] - one_device[1][0]) > 100 * LOSS_TOLERANCE


def test_masks_are_the_same_bits_on_any_mesh():
    def draw(key):
        return keep_mask(key, 0.3, (16, 12, 32))

    whole = np.asarray(jax.jit(draw)(jax.random.key(1)))
    for shape in SHAPES:
        mesh = build_mesh(as_mesh(shape))
        with jax.set_mesh(mesh):
            split = jax.jit(draw, out_shardings=jax.sharding.NamedSharding(mesh, BATCH_SPEC))(jax.random.key(1))
        np.testing.assert_array_equal(np.asarray(split), whole)


def test_accumulation_on_a_mesh_equals_accumulation_on_one_device(one_device):
    ours = run_steps(config=ONE_LAYER, mesh_config=as_mesh((2, 2, 2)), accumulation_steps=2)
    assert_same_training(ours, one_device)


@pytest.mark.slow
def test_dropout_with_accumulation_does_not_depend_on_the_mesh():
    settings = {"config": ONE_LAYER_DROPOUT, "accumulation_steps": 2, "dropout_seed": 5}
    reference = run_steps(**settings)
    assert_same_training(run_steps(mesh_config=as_mesh((2, 2, 2)), **settings), reference)


@pytest.mark.slow
def test_scanned_layers_train_on_a_mesh():
    reference = run_steps(config=ONE_LAYER, stacked=True)
    assert_same_training(run_steps(config=ONE_LAYER, stacked=True, mesh_config=as_mesh((2, 2, 2))), reference)


@pytest.mark.slow
@pytest.mark.parametrize(("remat", "stacked"), [("full", True), ("dots", True), ("attention", True), ("full", False)])
def test_what_is_computed_again_changes_nothing_on_any_axis(remat, stacked):
    reference = run_steps(2, config=DROPOUT_CONFIG, stacked=stacked, dropout_seed=5)
    settings = {"config": DROPOUT_CONFIG, "stacked": stacked, "dropout_seed": 5}
    for shape in ((2, 2, 2), (1, 2, 2, 2)):
        assert_same_training(run_steps(2, remat=remat, mesh_config=as_mesh(shape), **settings), reference)


def compile_pretraining(mesh, rows, length, slots, **sizes):
    """Compiles a step over packed rows whose hidden words are scored alone; returns it with its state and batch."""
    random = np.random.default_rng(0)
    config = ONE_LAYER.replace(max_position_embeddings=length, **sizes)
    params = map_leaves(lambda _, leaf: np.full(leaf.shape, 0.01, np.float32), abstract_params(config, "fill-mask"))
    optimizer, axes = tiny_optimizer(), leaf_axes(params)
    state, kinds = create_state(params, (), optimizer, leaf_axes=axes, mesh=mesh)
    batch = {
        "input_ids": random.integers(1, config.vocab_size, (rows, length)),
        "segment_ids": np.repeat([[1, 2]], length // 2, axis=1).repeat(rows, axis=0),
        "position_ids": np.tile(np.arange(length // 2), (rows, 2)),
        "masked_positions": random.integers(0, length, (rows, slots)),
        "labels": random.integers(1, config.vocab_size, (rows, slots)),
    }
    placed = place_batch({name: array.astype(np.int32) for name, array in batch.items()}, mesh)
    forward_pass = functools.partial(forward, graph_definition(config, "fill-mask", Execution()))
    shardings = state_shardings(state, axes, mesh, kinds)
    step = make_train_step(forward_pass, PretrainingLoss(), optimizer, kinds, shardings=shardings, mesh=mesh)
    with jax.set_mesh(mesh):
        return step.lower(state, placed, None).compile(QUICK), state, placed


def test_data_and_fsdp_gather_parameters_alone():
    compiled, state, _ = compile_pretraining(build_mesh(MeshConfig(data=2, fsdp=4)), 16, 24, 8)
    found = find_collectives(compiled.as_text())
    parameters = {leaf.shape for leaf in state.trainable.values()}
    assert {array.dimensions for entry in found if entry.kind == "all-gather" for array in entry.arrays} <= parameters
    assert not [entry for entry in found if entry.kind in ("all-to-all", "collective-permute")]


def test_weights_over_fsdp_and_tensor_are_gathered_over_fsdp_alone():
    """Left to the compiler, the scatter of a gradient over fsdp gathers it over tensor first, and activations for its product."""
    mesh = build_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    compiled, state, _ = compile_pretraining(mesh, 16, 24, 8)
    found = find_collectives(compiled.as_text())
    own = sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) for leaf in state.trainable.values())
    for kind in ("all-gather", "reduce-scatter"):
        entries = [entry for entry in found if entry.kind == kind]
        assert {entry.num_devices for entry in entries} == {2}
        assert sum(entry.size_bytes for entry in entries) <= 2 * 4 * own, f"{kind}: whole over fsdp, a half over tensor"
    assert not [entry for entry in found if entry.kind in ("all-to-all", "collective-permute")]


def test_scores_of_words_over_tensor_are_neither_gathered_nor_split_by_a_gather_that_ends_the_process():
    """The partitioner of jaxlib 0.10.2 died of the label's score where words lie over tensor and rows of tokens over sequence, at these sizes."""
    sizes = {"vocab_size": 8192, "hidden_size": 256, "num_attention_heads": 8, "intermediate_size": 1024}
    mesh = build_mesh(MeshConfig(data=2, sequence=2, tensor=2))
    compiled, _, _ = compile_pretraining(mesh, 16, 256, 40, **sizes)
    found = find_collectives(compiled.as_text())
    shapes = {array.dimensions for entry in found if entry.kind == "all-gather" for array in entry.arrays}
    assert shapes
    assert not [shape for shape in shapes if len(shape) == 3 and shape[-1] == sizes["vocab_size"]]


def test_of_activations_only_keys_values_and_hidden_words_travel_over_sequence():
    rows, length, slots, ways = 4, 48, 8, 4
    compiled, state, batch = compile_pretraining(build_mesh(MeshConfig(data=2, sequence=ways)), rows, length, slots)
    own, width, heads = rows // 2, CONFIG.hidden_size, CONFIG.num_attention_heads
    whole_keys = (own, heads, length, CONFIG.head_dim)
    found = find_collectives(compiled.as_text())
    gathered = Counter(array.dimensions for entry in found if entry.kind == "all-gather" for array in entry.arrays)
    # Keys, values and ids in the forward pass; in the backward pass the gradients of the hidden words' vectors.
    assert gathered == {whole_keys: 2, (own, length): 1, (own, slots, width): 1}
    scattered = [entry for entry in found if entry.kind == "reduce-scatter"]
    assert Counter(array.dimensions for entry in scattered for array in entry.arrays) == {
        (own, heads, length // ways, CONFIG.head_dim): 2,
        (own, slots // ways, width): 1,
    }
    assert {entry.num_devices for entry in scattered} == {ways}
    assert not [entry for entry in found if entry.kind in ("all-to-all", "collective-permute")]
    summed = {array.dimensions for entry in found if entry.kind == "all-reduce" for array in entry.arrays}
    assert not [shape for shape in summed if len(shape) > 2]
    # The step overwrites the state that it was given.
    compiled(state, batch, None)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.trainable, state.optimizer)))


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def run_processes(num_processes, devices_each, fsdp, sequence):
    address = free_address()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices_each}",
    }
    command = [sys.executable, "-m", "tests.train.process_worker", address, str(num_processes)]
    running = [
        subprocess.Popen(
            [*command, str(index), str(fsdp), str(sequence), "16"],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(num_processes)
    ]
    try:
        finished = [process.communicate(timeout=180) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, errors) in zip(running, finished, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [json.loads(output.splitlines()[-1]) for output, _ in finished]


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("devices_each", "fsdp", "sequence"),
    [(1, 2, 1), (2, 4, 1), (2, 1, 4)],
)
def test_two_processes_train_like_one(devices_each, fsdp, sequence, one_device_with_dropout):
    reference, losses, _ = one_device_with_dropout
    for result in run_processes(2, devices_each, fsdp, sequence):
        assert result["processes"] == 2
        assert result["devices"] == 2 * devices_each
        np.testing.assert_allclose(result["losses"], losses, rtol=LOSS_TOLERANCE)
        for name, leaf in reference.trainable.items():
            expected = [float(jnp.sum(leaf)), float(jnp.sum(jnp.abs(leaf)))]
            np.testing.assert_allclose(result["sums"][name], expected, rtol=1e-4, atol=1e-2)
